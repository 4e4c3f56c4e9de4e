"""config.json as transformers understands it: text settings alone, in either spelling, with what
its classes say where the file is silent.

Files of the hub spell rotary embeddings as `rope_theta`, `rope_scaling` and
`rope_local_base_freq`, windows as `sliding_window_pattern`; transformers 5 writes `rope_parameters`
and `layer_types`.
"""

from dataclasses import dataclass, field
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.architecture import MAX_COUNT, NUMBER, is_number
from wgtrain.files.architectures import unusable
from wgtrain.files.hf_rope import Rope, read_ropes
from wgtrain.files.hf_types import REFUSED, TYPES, WHOLES, ModelType
from wgtrain.files.source import shown

MAX_LAYERS = 1 << 14
_FLAG = "true or false"
_ATTENTION = ("attention", "full_attention")  # as layers are called on the hub, and now
# Settings that change the mathematics, and the values beside null under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0,)),
    "num_experts_per_tok": (0,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_bidirectional_attention": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "is_causal": (True,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "dual_chunk_attention_config": (),
    "per_layer_config": (),
}
_DROPOUTS = (
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout", "residual_dropout"),
    "embedding_dropout",
)
# Of the whole configuration: settings that are not supported, and what to do.
_QUANTISED = "its weights are quantised in a way of PyTorch's; take its GGUF, or the model in full"


@dataclass(frozen=True)
class Settings:
    """The text part of a config.json, checked: `values` by transformers' names of attributes."""

    name: str  # of `TYPES`
    kind: ModelType
    whole: str | None  # of `WHOLES`, where there is more than text
    values: dict[str, Any]
    ropes: tuple[Rope, Rope]  # of layers that see all, and of those with windows
    windowed: tuple[bool, ...]  # by layer; all False where no window is used
    no_rope: tuple[int, ...]  # layers without a rotary embedding
    tied: bool
    raw: dict[str, Any]  # the text settings as they stand in the file
    vision: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def head_size(self) -> int:
        """Of q and k."""
        size: int = self.values["head_dim"] or self["hidden_size"] // self["num_attention_heads"]
        return size

    @property
    def rotary(self) -> int:
        """How many of its values turn."""
        if not self.kind.partial:
            return self.head_size
        return int(self.head_size * self.values["partial_rotary_factor"])


def read_settings(config: dict[str, Any], where: str) -> Settings:
    """The settings of a model; FileError lists every one that is missing or not supported."""
    name, whole, text = _text(config, where)
    kind = TYPES[name]
    reader = _Reader(kind, text)
    values = reader.values()
    layers = values["num_hidden_layers"]
    windowed = reader.windowed(values, layers)
    no_rope = reader.no_rope(values, layers)
    ropes, problems = read_ropes(kind, text, values)
    reader.problems += problems
    tied = _tied(config, whole, values, reader)
    reader.problems += _whole_problems(config, name, text)
    reader.neutral()
    if problems := list(dict.fromkeys(reader.problems)):
        raise unusable(where, problems)
    if not any(windowed):
        values["sliding_window"] = None
    vision = config.get("vision_config")
    settings = Settings(
        name,
        kind,
        whole,
        values,
        ropes,
        windowed,
        no_rope,
        tied,
        text,
        vision if isinstance(vision, dict) else {},
        [
            f"{key} = {shown(text[key])}: dropout within the base model is not applied"
            for key in _DROPOUTS
            if text.get(key)
        ],
    )
    if problems := _shape_problems(settings):
        raise unusable(where, problems)
    return settings


def _text(config: dict[str, Any], where: str) -> tuple[str, str | None, dict[str, Any]]:
    """The type of the text part, that of the whole if there is more, and the text settings."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in TYPES:
        return kind, None, config
    if not isinstance(kind, str) or kind not in WHOLES:
        why = REFUSED.get(kind) if isinstance(kind, str) else None
        known = ", ".join([*TYPES, *WHOLES])
        more = f": {why}" if why else f"; supported are {known}"
        raise FileError(f"{where}: model_type {shown(kind)} is not supported{more}")
    whole = WHOLES[kind]
    text = config.get("text_config")
    if text is None and whole.flat:
        text = {key: value for key, value in config.items() if key != "model_type"}
    if not isinstance(text, dict):
        raise FileError(f"{where}: text_config is {shown(text)}; an object is needed")
    inner = text.get("model_type") or whole.texts[0]
    if inner == kind and whole.flat:  # as older files repeat it
        inner = whole.texts[0]
    if inner not in whole.texts:
        known = " or ".join(map(repr, whole.texts))
        raise FileError(
            f"{where}: text_config: model_type {shown(inner)} is not supported, only {known}"
        )
    return str(inner), kind, text


def _whole_problems(config: dict[str, Any], name: str, text: dict[str, Any]) -> list[str]:
    problems = []
    quantised = config.get("quantization_config") or text.get("quantization_config")
    if quantised is not None:
        problems.append(f"quantization_config = {shown(quantised)}: {_QUANTISED}")
    code = config.get("auto_map")
    if code is not None:
        # Files of a model that transformers has a class for often still bring the first one.
        made: Any = code.get("AutoModelForCausalLM", "") if isinstance(code, dict) else code
        known = name.removesuffix("_text").replace("_", "")
        if not isinstance(made, str) or not (
            made == "" or made.rpartition(".")[2].lower().startswith(known)
        ):
            problems.append(f"auto_map: the model brings code of its own, {shown(made)}")
    return problems


def _tied(
    config: dict[str, Any], whole: str | None, values: dict[str, Any], reader: "_Reader"
) -> bool:
    """Whether the head is the embedding: the class of the whole says it, where there is one."""
    if whole is None:
        return bool(reader.flag("tie_word_embeddings", values["tie_word_embeddings"]))
    tied = reader.flag("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is None:
        tied = WHOLES[whole].tied
    if WHOLES[whole].flat:  # older files have it within
        tied = tied or bool(reader.flag("tie_word_embeddings", values["tie_word_embeddings"]))
    return tied


class _Reader:
    """Reads one text part, and lists what is wrong with it."""

    def __init__(self, kind: ModelType, text: dict[str, Any]) -> None:
        self.kind, self.text = kind, text
        self.problems: list[str] = []

    def values(self) -> dict[str, Any]:
        """Every setting that its row names, checked; 1 where it is wrong."""
        kind, text = self.kind, self.text
        values: dict[str, Any] = {key: text.get(key, d) for key, d in kind.defaults.items()}
        for key in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "max_position_embeddings"),
            "original_max_position_embeddings",
        ):
            if key in values:
                values[key] = self.count(key, values[key])
        if kind.shared:
            key = "shared_intermediate_size"
            values["intermediate_size"] = self.count(key, values[key])
            for key in (
                *("mamba_d_conv", "mamba_d_state", "mamba_n_groups", "mamba_n_heads"),
                "mamba_expand",
            ):
                values[key] = self.count(key, values[key])
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        for key in ("num_key_value_heads", "head_dim", "sliding_window"):
            if values.get(key) is not None:
                values[key] = self.count(key, values[key])
        for key in (kind.eps, *kind.floats):
            values[key] = self.number(key, values[key])
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if values.get(key) is not None:
                values[key] = self.number(key, values[key])
        if kind.partial:
            rope = text.get("rope_parameters") or text.get("rope_scaling")
            if isinstance(rope, dict):
                key = "partial_rotary_factor"
                values[key] = rope.get(key, values[key])
            values["partial_rotary_factor"] = self.number(
                "partial_rotary_factor", values["partial_rotary_factor"]
            )
        for key, default in kind.defaults.items():
            if type(default) is bool:
                values[key] = self.flag(key, values[key])
        return values

    def count(self, key: str, value: Any) -> int:
        most = MAX_LAYERS if key == "num_hidden_layers" else MAX_COUNT
        if type(value) is int and 1 <= value <= most:
            return value
        return self.wrong(key, value, f"an integer from 1 to {most}")

    def number(self, key: str, value: Any) -> float:
        if is_number(value):
            return float(value)
        return self.wrong(key, value, NUMBER)

    def flag(self, key: str, value: Any) -> bool | None:
        if value is not None and type(value) is not bool:
            self.wrong(key, value, _FLAG)
            return None
        return value

    def wrong(self, key: str, value: Any, allowed: str) -> int:
        what = "missing" if value is None else shown(value)
        self.problems.append(f"{key} is {what}; {allowed} is needed")
        return 1

    def windowed(self, values: dict[str, Any], layers: int) -> tuple[bool, ...]:
        """Which layers have a window."""
        none = (False,) * layers
        how, window = self.kind.windows, values.get("sliding_window")
        kinds = self.text.get("layer_types")
        if self.kind.shared:
            kinds = self.text.get("layers_block_type") if kinds is None else kinds
            self.attention_alone(kinds, layers)
            return none
        if kinds is not None:
            kinds = self.layer_types(kinds, layers)
        if how == "":
            if (given := self.text.get("sliding_window")) is not None:
                self.problems.append(f"sliding_window = {shown(given)} is not supported")
            if kinds is not None and any(kinds):
                self.problems.append("layer_types: 'sliding_attention' is not supported")
            return none
        if window is None:
            return none
        if how == "all":  # whatever layer_types says
            return (True,) * layers
        if how in ("switch", "norope") and not values["use_sliding_window"]:
            return none
        if kinds is not None:
            return kinds
        if how == "switch":
            first = self.text.get("max_window_layers", values["max_window_layers"])
            if type(first) is not int or first < 0:
                self.wrong("max_window_layers", first, "an integer from 0")
                first = layers
            return tuple(i >= first for i in range(layers))
        if how == "norope":
            without = set(self.no_rope(values, layers))
            return tuple(i in without for i in range(layers))
        every: Any = self.text.get("sliding_window_pattern", how)
        if type(every) is not int or every < 1:
            self.wrong("sliding_window_pattern", every, "an integer from 1")
            every = 1
        return tuple(bool((i + 1) % every) for i in range(layers))

    def attention_alone(self, kinds: Any, layers: int) -> None:
        """A model whose class makes layers of states where nothing else is said."""
        whole = isinstance(kinds, list) and len(kinds) >= layers
        if not whole or any(kind not in _ATTENTION for kind in kinds[:layers]):
            self.problems.append(
                f"layer_types is {shown(kinds)}: layers with states (mamba) are not supported; "
                f"of this family, a model whose {layers} layers are all 'attention' is"
            )

    def layer_types(self, kinds: Any, layers: int) -> tuple[bool, ...] | None:
        known = {"full_attention": False, "sliding_attention": True}
        if not isinstance(kinds, list) or len(kinds) < layers:
            self.problems.append(f"layer_types is {shown(kinds)}; one for each layer is needed")
            return None
        for kind in kinds[:layers]:
            if not isinstance(kind, str) or kind not in known:
                self.problems.append(f"layer_types: {shown(kind)} is not supported")
                return None
        return tuple(known[kind] for kind in kinds[:layers])

    def no_rope(self, values: dict[str, Any], layers: int) -> tuple[int, ...]:
        """The layers without a rotary embedding."""
        if "no_rope_layer_interval" not in values:
            return ()
        given = self.text.get("no_rope_layers")
        if given is None:
            every = values["no_rope_layer_interval"]
            if type(every) is not int or every < 1:
                self.wrong("no_rope_layer_interval", every, "an integer from 1")
                return ()
            return tuple(i for i in range(layers) if (i + 1) % every == 0)
        whole = isinstance(given, list) and len(given) >= layers
        if not whole or any(type(x) not in (int, bool) or x not in (0, 1) for x in given):
            self.problems.append(
                f"no_rope_layers is {shown(given)}; 0 or 1 for each layer is needed"
            )
            return ()
        return tuple(i for i in range(layers) if not given[i])

    def neutral(self) -> None:
        """Settings that mean something else than this program computes."""
        kind, text = self.kind, self.text
        mine = {*kind.defaults, *kind.floats, *kind.biases}
        if kind.nested or kind.partial:
            mine |= {"partial_rotary_factor"} if kind.partial else set()
        allowed = {key: v for key, v in _NEUTRAL.items() if key not in mine} | dict(kind.only)
        for key, values in allowed.items():
            given = text.get(key)
            if given is None:
                given = kind.defaults.get(key)
            if given is None or given in values:
                continue
            self.problems.append(f"{key} = {shown(given)} is not supported")
        act = text.get(kind.act)
        if act is not None and act not in kind.acts:
            self.problems.append(f"{kind.act} = {shown(act)} is not supported")
        for key in kind.biases:
            self.flag(key, text.get(key))


def _shape_problems(s: Settings) -> list[str]:
    heads, width = s["num_attention_heads"], s["hidden_size"]
    if s["head_dim"] is None and width < heads:
        return [f"hidden_size {width} is below num_attention_heads {heads}"]
    if s.kind.partial and not 2 <= s.rotary <= s.head_size:
        factor = s.values.get("partial_rotary_factor")
        return [f"partial_rotary_factor = {factor}: {s.rotary} of {s.head_size} values of a head"]
    if s.kind.shared:  # of nothing, but the class compares them
        heads, width = s["mamba_n_heads"], s["mamba_expand"] * width
        if width % heads or s["mamba_d_head"] not in ("auto", width // heads):
            return [
                f"mamba_n_heads {heads} of {shown(s['mamba_d_head'])} values (mamba_d_head) do not "
                f"make mamba_expand x hidden_size, {width}"
            ]
    return []
