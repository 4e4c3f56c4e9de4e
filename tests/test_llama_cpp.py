"""llama.cpp and PEFT as judges of the files that leave here.

An adapter trained here must change llama.cpp's logits as it changes ours. Where llama.cpp rounds
activations to the weights' type (F16, BF16, 8 bits for blocks) the comparison is on an F32 file of
the same, dequantised weights; F16 is held to 1 % on its own file too.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import record
from llama_cpp_oracle import LlamaCpp
from peft_oracle import Peft, load_peft_folder, logits_of
from tiny import (
    LINEARS,
    SPECS,
    TYPES,
    Tiny,
    from_gguf,
    random_adapter,
    random_rows,
    targets,
    tiny,
)

import wgtrain
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.files import adapters

pytestmark = pytest.mark.oracle

EFFECT = 1e-3  # largest difference over largest change, F32 weights
EFFECT_F16 = 1e-2
CASES = [(name, type) for type in TYPES for name in SPECS] + [("stories260K", "F32")]


@dataclass(frozen=True)
class Judged:
    """A trained adapter and our logits: without it, and with it at the scales 1, 0.5 and 0."""

    name: str
    base: Tiny
    tokens: np.ndarray
    gguf: bytes
    peft: dict[str, bytes]
    plain: np.ndarray
    full: np.ndarray
    half: np.ndarray
    zero: np.ndarray


def train(model: Any, rows: list[Row], modules: list[str], layers: str = "all") -> Any:
    """A few steps at a rate that makes a large effect."""
    lora = wgtrain.LoraConfig(4, 8.0, target_modules=",".join(modules), layers=layers)
    config = wgtrain.TrainConfig(iters=8, epochs=None, batch_size=3, learning_rate=2e-2)
    trainer = wgtrain.Trainer(model, Dataset(rows, "rows", 256, 0, 0, []), lora, config)
    for _ in trainer.run():
        pass
    return trainer


def made_rows(base: Tiny) -> list[Row]:
    """Random rows of every length from 4 to 27."""
    rows = random_rows(base.spec, list(range(4, 28)), seed=6)
    return [Row(tokens, goals, line) for line, (tokens, goals) in enumerate(rows, 1)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def judged(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Judged]:
    name, type = request.param
    base = from_gguf(data_dir / f"{name}.gguf") if name == "stories260K" else tiny(name, type)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        if name == "stories260K":
            text = (data_dir / "wikisql_train.jsonl").read_bytes()
            rows = wgtrain.load_dataset(text, model, seq_len=96).rows[:24]
        else:
            rows = made_rows(base)
        ((tokens, _),) = random_rows(base.spec, [29], seed=1)
        trainer = train(model, rows, [*LINEARS] if base.spec.tied else [*LINEARS, "output"])
        data = trainer.adapter_gguf()

        def logits(*scale: float) -> np.ndarray:
            return model.logits(tokens, adapters=[(data, s) for s in scale])

        yield Judged(
            f"{name} {type}",
            base,
            tokens,
            data,
            trainer.adapter_peft(),
            logits(),
            logits(1.0),
            logits(0.5),
            logits(0.0),
        )
        trainer.close()


def effect(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Largest difference of two changes of logits, relative to the largest change."""
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


@pytest.mark.gpu
def test_effect(judged: Judged) -> None:
    """Scales 1, 0.5 and 0 on F32 weights, and on the file itself where those are F16."""
    full, half = judged.full - judged.plain, judged.half - judged.plain
    spread = float(judged.plain.std())
    assert np.abs(full).max() > 0.5 * spread, "the adapter must matter"
    np.testing.assert_array_equal(judged.zero, judged.plain)
    files = {EFFECT: judged.base.gguf_f32}
    if judged.base.type == "F16":
        files[EFFECT_F16] = judged.base.gguf
    for bound, file in files.items():
        llama = LlamaCpp(file)
        adapter = llama.adapter(judged.gguf)
        plain = llama.logits(judged.tokens)
        np.testing.assert_array_equal(llama.logits(judged.tokens, adapter, 0.0), plain)
        ours = effect(llama.logits(judged.tokens, adapter) - plain, full)
        at_half = effect(llama.logits(judged.tokens, adapter, 0.5) - plain, half)
        off = effect(llama.logits(judged.tokens, adapter, 1 + 4 * bound) - plain, full)
        base = float(np.abs(plain - judged.plain).max() / spread)
        llama.close()
        record(
            "llama.cpp" if bound == EFFECT else "llama.cpp on the F16 file",
            model=judged.name,
            effect=ours,
            half=at_half,
            base=base,
            largest_change=float(np.abs(full).max()),
        )
        assert ours < bound
        assert at_half < bound
        assert off > bound, "a scale that is a little off must show"


@pytest.mark.gpu
def test_loads_on_the_file(judged: Judged) -> None:
    """The adapter works on the file it was trained on, within what llama.cpp's rounding allows."""
    llama = LlamaCpp(judged.base.gguf)
    adapter = llama.adapter(judged.gguf)
    change = llama.logits(judged.tokens, adapter) - llama.logits(judged.tokens)
    llama.close()
    found = effect(change, judged.full - judged.plain)
    record("llama.cpp on the file", model=judged.name, effect=found)
    assert found < (0.2 if judged.base.type.startswith("Q") else 0.05)


@pytest.mark.gpu
def test_peft_folder(judged: Judged) -> None:
    """PEFT loads the folder without a word, and agrees."""
    model = load_peft_folder(judged.base, judged.peft)
    theirs = logits_of(model, judged.tokens)
    with model.disable_adapter():
        plain = logits_of(model, judged.tokens)
    found = effect(theirs - plain, judged.full - judged.plain)
    logits = float(np.linalg.norm(theirs - judged.full) / np.linalg.norm(theirs))
    record("PEFT folder", model=judged.name, effect=found, logits=logits)
    assert logits <= 1e-5
    assert found <= 1e-4


@pytest.mark.gpu
def test_peft_folder_of_some_layers() -> None:
    """Where some blocks have no adapter, PEFT must not make one there."""
    base = tiny("llama")
    ((tokens, _),) = random_rows(base.spec, [29], seed=1)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        trainer = train(model, made_rows(base), ["attn_q", "ffn_down"], layers="0,2")
        ours = model.logits(tokens, adapters=[(trainer.adapter_gguf(), 1.0)])
        theirs = logits_of(load_peft_folder(base, trainer.adapter_peft()), tokens)
        trainer.close()
    assert float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)) <= 1e-5


@pytest.mark.gpu
def test_refused_on_another_model(judged: Judged) -> None:
    """The oracle can refuse: an adapter of another architecture does not load."""
    other = "qwen3" if judged.base.spec.architecture != "qwen3" else "qwen2"
    llama = LlamaCpp(tiny(other).gguf)
    with pytest.raises(ValueError, match="refuses the adapter"):
        llama.adapter(judged.gguf)
    llama.close()


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize(
    ("modules", "layers"),
    [(None, None), (["attn_q", "attn_k", "ffn_up"], [0, 2]), (["attn_v", "ffn_down"], [1])],
    ids=["all", "two layers", "one layer"],
)
def test_files(
    name: str, modules: list[str] | None, layers: list[int] | None, tmp_path: Path
) -> None:
    """A random adapter written for llama.cpp and for PEFT has the effect PEFT gives it in memory.

    A folder that PEFT writes is read back to the same numbers.
    """
    base = tiny(name)
    spec = base.spec
    if modules is None and not spec.tied:
        modules = [*LINEARS, "output"]
    pairs = random_adapter(spec, targets(spec, modules, layers), 3, seed=12)
    adapter = adapters.Adapter(spec.architecture, 3, 6.0, pairs)
    ((tokens, _),) = random_rows(spec, [29], seed=1)
    reference = Peft(base, pairs, 6.0)
    plain = logits_of(base.hf_model(), tokens)
    expected = reference.logits(tokens) - plain

    llama = LlamaCpp(base.gguf)
    handle = llama.adapter(adapters.write_adapter_gguf(adapter))
    found = effect(llama.logits(tokens, handle) - llama.logits(tokens), expected)
    llama.close()
    heads: dict[str, Any] = {"n_head": spec.heads, "n_head_kv": spec.kv_heads}
    folder = adapters.write_adapter_peft(adapter, base_name=None, n_layer=spec.layers, **heads)
    np.testing.assert_array_equal(
        logits_of(load_peft_folder(base, folder), tokens), reference.logits(tokens)
    )
    record("adapter files", model=f"{name} F32", modules=modules, llama_cpp=found)
    assert found < 1e-4

    with warnings.catch_warnings():  # PEFT says that it saves the head's frozen weight too
        warnings.simplefilter("ignore")
        reference.model.save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    back = adapters.read_adapter_peft(files, architecture=spec.architecture, **heads)
    assert (back.rank, back.alpha) == (3, 6.0)
    assert set(back.tensors) == set(pairs)
    for key, (a, b) in pairs.items():
        np.testing.assert_array_equal(back.tensors[key][0], a)
        np.testing.assert_array_equal(back.tensors[key][1], b)
