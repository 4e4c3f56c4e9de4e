"""Each architecture beside transformers + PEFT in float64, and beside llama.cpp; and that what it
has of its own matters: the same model read wrongly misses the bounds by far.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from figures import record
from llama_cpp_oracle import LlamaCpp
from peft_oracle import Pairs, Peft, Tensors, load_peft_folder, logits_of
from specs import LONG, MORE, QKV, SHORT, SPECS
from test_llama_cpp import EFFECT, effect
from test_peft import ALPHA, GRADIENT, LOGITS, LOSS, RANK, our_gradients, relative, worst
from tiny import Tiny, random_adapter, random_rows, targets, tiny

import wgtrain
from wgtrain import gpu
from wgtrain.engine.graph import Window
from wgtrain.files import ARCHITECTURES
from wgtrain.files.adapters import (
    Adapter,
    read_adapter_peft,
    write_adapter_gguf,
    write_adapter_peft,
)
from wgtrain.infer.session import Session
from wgtrain.model.config import ModelConfig
from wgtrain.model.layers import Layer
from wgtrain.model.rope import LongRope, Yarn

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

# Up to a window of 8, over it, and past the context of rotations that were stretched.
LENGTHS = [7, 8, 9, 33, 2, 17]
# The GELU of llama.cpp is a table of f16: with it, the effect of an adapter is this far off.
GELU_EFFECT, GELU_LOGITS = 4e-3, 5e-4
TYPED = {
    "F16": ("gemma2", "smollm3", "granite", "mistral3", "qwen2vl", "starcoder2"),
    "Q8_0": ("gemma", "phi3", "olmo2", "mistral3", "qwen3vl", "stablelm", "glm4"),
    "Q5_0": ("gemma2", "gemma3", "granite", "glm4", "qwen2vl", "stablelm", "llama", "qwen3"),
    "Q4_K": (
        *("gemma", "gemma3", "phi3", "smollm3", "olmo2", "glm4", "qwen3vl", "starcoder2"),
        *("llama", "qwen2", "qwen3"),
    ),
}
CASES = [(name, "F32") for name in MORE]
CASES += [(name, type) for type, names in TYPED.items() for name in names]
if os.environ.get("WGTRAIN_EVERY_TYPE"):  # minutes, for evidence
    CASES = [(name, type) for name in (*SPECS, *MORE) for type in ("F32", *TYPED)]
# But for one that is another by the number of its layers alone.
FORMS = [name for name in MORE if name != "gemma2-27b"]


def adapted(base: Tiny) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A random adapter at every linear, and at the head where it can have one."""
    names = [*base.spec.linears] + ([] if base.spec.tied else ["output"])
    return random_adapter(base.spec, targets(base.spec, names), RANK, seed=7)


def apart(base: Tiny, pairs: Pairs) -> Pairs:
    """The pairs as transformers' modules have them: those of fused ones share A."""
    return {
        name: (a, part)
        for fused, (a, b) in pairs.items()
        for name, part in base.spec.parts(fused, b).items()
    }


def together(base: Tiny, found: Tensors) -> Tensors:
    """Gradients of such pairs as those of the pairs they were."""
    if not base.spec.fused:
        return found
    joined = {name: x for name, x in found.items() if not re.search(r"attn_[qkv]\.", name)}
    for layer in range(base.spec.layers):
        names = [f"blk.{layer}.{name}.weight.lora_" for name in QKV]
        joined[f"blk.{layer}.attn_qkv.weight.lora_a"] = sum(found[f"{name}a"] for name in names)
        parts = [found[f"{name}b"] for name in names]
        joined[f"blk.{layer}.attn_qkv.weight.lora_b"] = np.concatenate(parts)
    return joined


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Tiny, Any]]:
    base = tiny(*request.param)
    model = wgtrain.load_model(base.gguf, limits="default")
    yield base, model
    model.close()


def test_peft(case: tuple[Tiny, Any]) -> None:
    """Logits, loss and all gradients of an adapter."""
    base, model = case
    pairs = adapted(base)
    rows = random_rows(base.spec, base.spec.lengths or LENGTHS, seed=2)
    longest = max((row for row, _ in rows), key=len)
    reference = Peft(base, apart(base, pairs), ALPHA, "float64")
    adapter = Adapter(base.spec.architecture, RANK, ALPHA, pairs, {})
    expected = reference.logits(longest)
    logits = relative(model.logits(longest, adapters=[(adapter, 1.0)]), expected)
    loss, count, theirs = reference.gradients(rows)
    wanted = together(base, theirs)
    our_loss, ours = our_gradients(model, pairs, rows, batches=1)
    distance, tensor = worst(ours, wanted)
    figures = {"logits": logits, "gradients": distance, "loss": abs(our_loss * count - loss) / loss}
    record("architecture", model=f"{base.spec.architecture} {base.type}", **figures)
    assert logits <= LOGITS
    assert distance <= GRADIENT, tensor
    assert our_loss == pytest.approx(loss / count, rel=LOSS)


@pytest.mark.parametrize("name", list(MORE))
def test_llama_cpp(name: str) -> None:
    """llama.cpp loads the file and the adapter, which changes its logits as it changes ours."""
    base = tiny(name)
    adapter = Adapter(base.spec.architecture, RANK, ALPHA, adapted(base), {})
    data = write_adapter_gguf(adapter)
    n = 8 if base.spec.unseen_window else max(base.spec.lengths or LENGTHS)
    ((tokens, _),) = random_rows(base.spec, [n], seed=1)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        plain = model.logits(tokens)
        change = model.logits(tokens, adapters=[(data, 1.0)]) - plain
    llama = LlamaCpp(base.gguf, n_ctx=512 if n > 256 else 256)
    theirs = llama.logits(tokens)
    found = effect(llama.logits(tokens, llama.adapter(data)) - theirs, change)
    llama.close()
    logits = float(np.abs(theirs - plain).max() / np.ptp(theirs))
    record("architecture in llama.cpp", model=name, effect=found, logits=logits)
    gelu = base.spec.row.activation == "gelu"
    deep = max(base.spec.layers / 8, 1)  # its error adds up
    assert logits < (GELU_LOGITS * deep if gelu else 1e-4)
    assert found < (GELU_EFFECT * deep if gelu else EFFECT)


@pytest.mark.parametrize("name", FORMS)
def test_peft_folder(name: str) -> None:
    """PEFT loads an adapter's folder and gives the logits of PEFT with the adapter; so do we."""
    base = tiny(name)
    spec, pairs = base.spec, adapted(base)
    adapter = Adapter(spec.architecture, RANK, ALPHA, pairs, {})
    heads: dict[str, Any] = {"n_head": spec.heads, "n_head_kv": spec.kv_heads}
    files = write_adapter_peft(adapter, base_name=None, n_layer=spec.layers, **heads)
    ((tokens, _),) = random_rows(spec, [17], seed=1)
    expected = Peft(base, apart(base, pairs), ALPHA).logits(tokens)
    np.testing.assert_array_equal(logits_of(load_peft_folder(base, files), tokens), expected)
    back = read_adapter_peft(files, architecture=spec.architecture, **heads)
    assert set(back.tensors) == set(apart(base, pairs))
    for key, (a, b) in apart(base, pairs).items():
        np.testing.assert_array_equal(back.tensors[key][0], a)
        np.testing.assert_array_equal(back.tensors[key][1], b)


# What a wrong reading of each knob would be.

Change = Callable[[ModelConfig], ModelConfig]


def layers(change: Callable[[int, Layer], Layer]) -> Change:
    """Other layers."""
    return lambda c: replace(c, layers=tuple(change(il, of) for il, of in enumerate(c.layers)))


def every(**fields: Any) -> Change:
    """Layers of which all have these."""
    return layers(lambda il, layer: replace(layer, **fields))


def fields(**changed: Any) -> Change:
    """Another configuration."""
    return lambda c: replace(c, **changed)


def wider(by: int) -> Change:
    """Windows that are wider."""
    return layers(lambda il, of: replace(of, window=of.window + by) if of.window else of)


def turned(**changed: Any) -> Change:
    """Layers that turn otherwise."""
    return layers(lambda il, of: replace(of, rope=of.rope and replace(of.rope, **changed)))


def yarned(**changed: Any) -> Change:
    """Layers whose YaRN is another."""

    def change(il: int, of: Layer) -> Layer:
        assert of.rope is not None and isinstance(of.rope.scaling, Yarn)
        return replace(of, rope=replace(of.rope, scaling=replace(of.rope.scaling, **changed)))

    return layers(change)


def rolled(by: int) -> Change:
    """Each layer has what another has."""
    return lambda c: replace(c, layers=c.layers[by:] + c.layers[:by])


def none_in(*still: int) -> Change:
    """Layers of which these alone have no rotation, so far as others have one."""
    return lambda c: replace(
        c,
        layers=tuple(
            replace(c.layers[0], rope=None) if il in still else c.layers[0]
            for il in range(c.n_layer)
        ),
    )


READINGS: list[tuple[str, str, Change]] = [
    ("gemma", "no scale of embeddings", fields(embedding_scale=1.0)),
    ("gemma", "embeddings by the root of the head", fields(embedding_scale=20**0.5)),
    ("gemma2", "no cap of scores", every(softcap=0.0)),
    ("gemma2", "no cap of logits", fields(softcap=0.0)),
    ("gemma2", "scores by the width", fields(attention_scale=(52 / 4) ** -0.5)),
    ("gemma2", "windows wider by one", wider(1)),
    ("gemma2", "windows narrower by one", wider(-1)),
    ("gemma2", "no windows", every(window=0)),
    ("gemma2", "windows in all layers", every(window=8)),
    ("gemma2", "windows in odd layers", rolled(1)),
    ("gemma3", "one base of rotations", turned(theta=1e6)),
    ("gemma3-linear", "not stretched", turned(linear=1.0)),
    ("gemma3-linear", "all layers stretched", turned(linear=8.0)),
    ("gemma3-linear", "its base stretched", turned(theta=8e6, linear=1.0)),
    ("phi3", "no windows", every(window=0)),
    ("phi3-long", "the whole head turns", turned(rotary=24, scaling=None)),
    ("phi3-long", "no factors", turned(scaling=None)),
    ("phi3-long", "the short list", turned(scaling=LongRope(SHORT, SHORT, 20))),
    ("phi3-long", "no magnitude", turned(attn_factor=1.0)),
    ("smollm3", "rotations everywhere", lambda c: replace(c, layers=c.layers[:1] * 5)),
    ("smollm3", "none in the first layer", none_in(0)),
    ("smollm3", "none in the fifth layer too", none_in(3, 4)),
    ("granite", "no scale of embeddings", fields(embedding_scale=1.0)),
    ("granite", "no scale of branches", fields(residual_scale=1.0)),
    ("granite", "no scale of logits", fields(logit_scale=1.0)),
    ("granite", "logits times their scale", fields(logit_scale=0.4)),
    ("granite", "scores by the head", fields(attention_scale=20**-0.5)),
    ("granite", "no rotations", every(rope=None)),
    ("olmo3", "all layers stretched", lambda c: replace(c, layers=(c.layers[3],) * 4)),
    ("olmo3", "no window in the third layer", rolled(1)),
    ("olmo3", "no windows", every(window=0)),
    ("gemma2-27b", "scores by the head", fields(attention_scale=0.25)),
    ("phi3-short", "the long list", turned(scaling=LongRope(LONG, LONG, 256))),
    ("glm4", "the whole head turns", turned(rotary=28)),
    ("glm4", "halves turn, not neighbours", turned(interleaved=False)),
    ("llama-freqs", "not divided", turned(divisors=())),
    ("llama-freqs", "one divisor", turned(divisors=(8.0,) * 12)),
    ("llama-linear", "not stretched", turned(linear=1.0)),
    ("llama-linear", "its base stretched", turned(theta=3e4, linear=1.0)),
    ("mistral", "no windows", every(window=0)),
    ("qwen3-yarn", "linear", turned(scaling=None, linear=4.0)),
    ("qwen3-yarn", "no magnitude", yarned(attention_factor=1.0)),
    ("qwen3-yarn", "all of its context", yarned(context=1024)),
    ("qwen3-yarn", "other betas", yarned(beta_fast=4.0)),
    ("mistral3", "usual betas", yarned(beta_fast=32.0)),
    ("mistral3", "a magnitude", yarned(attention_factor=None)),
    ("mistral3", "queries do not grow", every(query_scale=None)),
    ("qwen2vl", "neighbours turn", turned(interleaved=True)),
    ("qwen3vl", "neighbours turn", turned(interleaved=True)),
    ("stablelm", "the whole head turns", turned(rotary=24)),
    ("stablelm-parallel", "one after the other", fields(optional=frozenset({"ffn_norm.weight"}))),
    ("starcoder2", "no windows", every(window=0)),
]
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("gemma", "SiLU", {"activation": "silu"}),
    ("starcoder2", "no mean subtracted", {"layer_norm": False}),
    ("stablelm", "no mean subtracted", {"layer_norm": False}),
    ("stablelm", "GELU", {"activation": "gelu"}),
    ("olmo2", "heads normalised", {"wide_qk_norm": False}),
    ("phi3", "GELU", {"activation": "gelu"}),
]


def read_wrongly(model: Any, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The logits of a model whose configuration were another."""
    base = replace(model.base, config=config)
    session = Session(model.device, base, {}, len(tokens))
    try:
        gpu.run(session.open())
        return gpu.run(session.logits([tokens.tolist()]))
    finally:
        session.close()


@pytest.mark.parametrize("name", list(MORE))
def test_wrong_readings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each knob of a model matters by more than ten times the bound."""
    base = tiny(name)
    ((tokens, _),) = random_rows(base.spec, [max(base.spec.lengths or LENGTHS)], seed=1)
    missed = []
    with wgtrain.load_model(base.gguf, limits="default") as model:
        expected = model.logits(tokens)
        config = model.config
        for of, what, change in READINGS:
            if of == name:
                found = relative(read_wrongly(model, tokens, change(config)), expected)
                missed += [what] if found < 10 * LOGITS else []
        for of, what, flags in ROWS:
            if of == name:
                row = ARCHITECTURES[config.architecture]
                monkeypatch.setitem(ARCHITECTURES, row.name, replace(row, **flags))
                found = relative(read_wrongly(model, tokens, config), expected)
                monkeypatch.undo()
                missed += [what] if found < 10 * LOGITS else []
    assert not missed


@pytest.mark.parametrize("name", FORMS)
def test_every_norm_and_bias_matters(name: str) -> None:
    """None is left out, or taken for another one: where it is something else, logits are."""
    base = tiny(name)
    ((tokens, _),) = random_rows(base.spec, [17], seed=1)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        expected = model.logits(tokens)
        vectors = {
            key: window
            for key, window in model.weights.vectors.items()
            if not key.startswith("blk.") or key.startswith("blk.0.")
        }
        kept = {key: read_vector(model, window) for key, window in vectors.items()}

        def missed_by(changed: dict[str, np.ndarray]) -> float:
            for key, values in changed.items():
                model.device.write(vectors[key].storage.live, vectors[key].offset, values)
            found = relative(model.logits(tokens), expected)
            for key in changed:
                model.device.write(vectors[key].storage.live, vectors[key].offset, kept[key])
            return found

        for key, values in kept.items():
            # Every tenth of what a norm is away from 1, and a bias from 0.
            plain = np.float32(0 if key.endswith("bias") else 1)
            found = missed_by({key: values + np.float32(0.1) * (values - plain)})
            # Scores do not see a bias that all keys share.
            assert found > 10 * LOGITS or key.endswith("attn_k.bias"), key
        one, other = (f"blk.0.post_{of}_norm.weight" for of in ("attention", "ffw"))
        if one in kept:
            assert missed_by({one: kept[other], other: kept[one]}) > 10 * LOGITS, "exchanged"
        assert missed_by({}) == 0


def read_vector(model: Any, window: Window) -> np.ndarray:
    """What lies in a window of the weights, float32."""
    data = gpu.run(model.device.read(window.storage.live, window.offset, window.size))
    return np.frombuffer(data, np.float32)
