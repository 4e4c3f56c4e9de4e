"""Rotary embeddings as config.json spells them -> one form, and what GGUF stores of them."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wgtrain.files.architecture import MAX_COUNT, NUMBER, is_number
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN
from wgtrain.files.hf_types import ModelType
from wgtrain.files.magnitudes import longrope_magnitude, yarn_magnitude
from wgtrain.files.source import shown

_NUMBERS: dict[str, dict[str, bool]] = {  # of each type: key -> whether it must be there
    "default": {},
    "linear": {"factor": True},
    "llama3": {
        "factor": True,
        "low_freq_factor": True,
        "high_freq_factor": True,
        "original_max_position_embeddings": False,
    },
    "yarn": {
        "factor": False,
        "original_max_position_embeddings": False,
        "attention_factor": False,
        "beta_fast": False,
        "beta_slow": False,
        "mscale": False,
        "mscale_all_dim": False,
        "llama_4_scaling_beta": False,
    },
    "longrope": {
        "factor": False,
        "original_max_position_embeddings": False,
        "attention_factor": False,
    },
}
# Keys that change nothing here: read elsewhere, of images' positions, or read by nobody.
_SILENT = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate"),
    *("mrope_section", "mrope_interleaved", "long_factor", "short_factor", "finetuned"),
    *("max_position_embeddings", "extrapolation_factor", "original_max_position_embeddings"),
    *("short_mscale", "long_mscale", "attn_factor", "apply_yarn_scaling"),
}
_LONG_NAMES = ("longrope", "su", "yarn")  # of phi3, whose older files use the others


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: `numbers` by transformers' names, those that its type has."""

    type: str  # default, linear, llama3, yarn or longrope
    theta: float
    numbers: dict[str, float] = field(default_factory=dict)
    truncate: bool = True  # of yarn: whether the ramp's ends are whole numbers
    long: tuple[float, ...] = ()  # factors of longrope
    short: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()  # how values are shared out among an image's axes

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        n, factor = self.numbers, self.numbers.get("factor", 1.0)
        if "attention_factor" in n:
            return n["attention_factor"]
        if self.type == "yarn":
            scale, all_dim = n.get("mscale"), n.get("mscale_all_dim")
            both = (scale, all_dim) if scale and all_dim else ()
            return yarn_magnitude(factor, *both)
        return longrope_magnitude(factor, self.original) if self.type == "longrope" else 1.0

    @property
    def plain_magnitude(self) -> float:
        """Yarn's own magnitude, which llama.cpp computes."""
        return yarn_magnitude(self.numbers.get("factor", 1.0))

    @property
    def original(self) -> int:
        """The context before scaling."""
        return int(self.numbers["original_max_position_embeddings"])

    def divisors(self, rotary: int) -> np.ndarray:
        """What llama3 divides the frequencies by, (rotary / 2,) float32."""
        n = self.numbers
        # In float32 like transformers and the converter, so that the file is the same.
        steps = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
        waves = np.float32(2 * math.pi) * np.float32(self.theta) ** steps
        low, high, factor = n["low_freq_factor"], n["high_freq_factor"], n["factor"]
        smooth = (np.float32(self.original) / waves - np.float32(low)) / np.float32(high - low)
        between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
        found = np.where(waves > self.original / low, np.float32(factor), between)
        return np.where(waves < self.original / high, np.float32(1), found).astype(np.float32)


def read_ropes(
    kind: ModelType, text: dict[str, Any], values: dict[str, Any]
) -> tuple[tuple[Rope, Rope], list[str]]:
    """The embeddings of layers that see all, and of those with windows; and what is wrong."""
    problems: list[str] = []
    given: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the second wins where it says something
        rope = text.get(key)
        if rope is not None and not isinstance(rope, dict):
            problems.append(f"{key} is {shown(rope)}; an object is needed")
        elif rope:
            given[key] = rope
    if not kind.nested:
        name = next(reversed(given), "rope_parameters")
        raw = dict(given.get(name) or kind.defaults.get("rope_parameters", {}))
        raw.setdefault("rope_theta", text.get("rope_theta", values["rope_theta"]))
        rope = _rope(kind, raw, name, text, values, problems)
        return (rope, rope), problems
    parts: dict[str, Any] = dict(given.get("rope_parameters", {}))
    unknown = [key for key in parts if key not in ("full_attention", "sliding_attention")]
    if unknown:
        problems.append(f"rope_parameters: {shown(unknown[0])} is not supported")
    thetas = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    found = []
    for part, key in thetas.items():
        raw = parts.get(part) or {}
        if not isinstance(raw, dict):
            problems.append(f"rope_parameters: {part} is {shown(raw)}; an object is needed")
            raw = {}
        raw = dict(raw)
        if part == "full_attention" and (scaling := given.get("rope_scaling")):
            if "type" in scaling and "rope_type" not in scaling:
                problems.append("rope_scaling: 'type' says nothing here; 'rope_type' is needed")
            raw |= scaling
        raw.setdefault("rope_theta", text.get(key, values[key]))
        found.append(_rope(kind, raw, f"rope_parameters: {part}", text, values, problems))
    if found[1].type != "default":
        problems.append(
            f"rope_parameters: sliding_attention: rope_type {shown(found[1].type)} is not "
            "supported, only 'default'"
        )
    return (found[0], found[1]), problems


def _rope(
    kind: ModelType,
    raw: dict[str, Any],
    where: str,
    text: dict[str, Any],
    values: dict[str, Any],
    problems: list[str],
) -> Rope:
    name = raw.get("rope_type", raw.get("type", "default"))
    if name == "mrope":  # of models for images, whose text has one position
        name = "default"
    if "longrope" in kind.rope and name in _LONG_NAMES:
        name = "longrope"
    theta = _number(raw, "rope_theta", True, "" if "rope_theta" in text else where, problems)
    if not isinstance(name, str) or name not in kind.rope:
        known = ", ".join(map(repr, kind.rope))
        problems.append(f"{where}: rope_type {shown(name)} is not supported, only {known}")
        return Rope("default", theta or 1.0)
    unread = [key for key in raw if key not in {*_NUMBERS[name], *_SILENT}]
    if name != "default":
        problems += [
            f"{where}: {shown(key)} = {shown(raw[key])} is not supported" for key in unread
        ]
    if not kind.partial and raw.get("partial_rotary_factor") not in (None, 1):
        value = shown(raw["partial_rotary_factor"])
        problems.append(f"{where}: 'partial_rotary_factor' = {value} is not supported")
    numbers = _numbers(name, raw, where, text, values, problems)
    truncate = raw.get("truncate", True)
    if type(truncate) is not bool:
        problems.append(f"{where}: truncate is {shown(truncate)}; true or false is needed")
    long: tuple[float, ...] = ()
    short: tuple[float, ...] = ()
    if name == "longrope":
        size = values["head_dim"] or values["hidden_size"] // values["num_attention_heads"]
        pairs = int(size * values["partial_rotary_factor"]) // 2
        long = _factors(raw, "long_factor", pairs, where, problems)
        short = _factors(raw, "short_factor", pairs, where, problems)
    made = Rope(
        name,
        theta or 1.0,
        numbers,
        truncate is not False or kind.nested,  # transformers looks for it one level up
        long,
        short,
        _sections(raw, where, problems),
    )
    if not F32_MIN <= made.magnitude <= F32_MAX:
        problems.append(f"{where}: cos and sin would be multiplied by {made.magnitude:g}")
        return Rope("default", made.theta)
    return made


def _numbers(
    name: str,
    raw: dict[str, Any],
    where: str,
    text: dict[str, Any],
    values: dict[str, Any],
    problems: list[str],
) -> dict[str, float]:
    """The numbers of an embedding of type `name`, those that it leaves out among them."""
    numbers = {
        key: number
        for key, needed in _NUMBERS[name].items()
        if (number := _number(raw, key, needed, where, problems)) is not None
    }
    if name in ("llama3", "yarn", "longrope"):
        original, context = "original_max_position_embeddings", values["max_position_embeddings"]
        if (outer := text.get(original, values.get(original))) is not None:
            numbers[original] = _number({original: outer}, original, True, "", problems) or 1.0
        numbers.setdefault(original, float(context))
        if not 2 <= numbers[original] <= MAX_COUNT or numbers[original] % 1:
            what = f"{where}: {original} is {numbers[original]:g}"
            problems.append(f"{what}; an integer from 2 to {MAX_COUNT} is needed")
            numbers[original] = 2.0
        if name != "llama3":
            numbers.setdefault("factor", context / numbers[original])
    if name == "llama3" and numbers.get("low_freq_factor") == numbers.get("high_freq_factor"):
        problems.append(f"{where}: low_freq_factor and high_freq_factor are equal")
    return numbers


def _number(
    raw: dict[str, Any], key: str, needed: bool, where: str, problems: list[str]
) -> float | None:
    value: Any = raw.get(key)
    if value is None and not needed:
        return None
    if is_number(value):
        return float(value)
    what = "missing" if value is None else shown(value)
    place = f"{where}: " if where else ""
    problems.append(f"{place}{key} is {what}; {NUMBER} is needed")
    return None


def _factors(
    raw: dict[str, Any], key: str, pairs: int, where: str, problems: list[str]
) -> tuple[float, ...]:
    """One of longrope's two lists."""
    given: Any = raw.get(key)
    if isinstance(given, list) and len(given) == pairs:
        numbers = [float(x) for x in given if is_number(x)]
        if len(numbers) == pairs:
            return tuple(numbers)
    problems.append(f"{where}: {key} is {shown(given)}; {pairs} numbers above 0 are needed")
    return ()


def _sections(raw: dict[str, Any], where: str, problems: list[str]) -> tuple[int, ...]:
    given = raw.get("mrope_section")
    if given is None:
        return ()
    whole = isinstance(given, list) and 1 <= len(given) <= 4
    if not whole or not all(type(n) is int and 0 <= n < 1 << 31 for n in given):
        problems.append(f"{where}: mrope_section is {shown(given)}; up to 4 integers are needed")
        return ()
    return (*given, 0, 0, 0, 0)[:4]
