"""Inference: adapters read once, tuned kernels, sessions reused, text in whole characters."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import wgtrain
from wgtrain import api
from wgtrain.cli.demo import BASE
from wgtrain.data import Dataset, Row
from wgtrain.engine.tuning import DEFAULT_CPU, Choice, Tuning
from wgtrain.infer import stack as stack_module
from wgtrain.infer.text import TextStream
from wgtrain.train.config import LoraConfig, TrainConfig

pytestmark = pytest.mark.gpu
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(BASE, limits="default") as opened:
        yield opened


@pytest.fixture(scope="module")
def adapter(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what is said."""
    tokens = np.array(model.tokenizer.encode("Once upon a frog a frog a frog a frog"), np.uint32)
    targets = np.append(tokens[1:], -1).astype(np.int32)
    rows = Dataset([Row(tokens, targets, 1)], "rows", 64)
    config = TrainConfig(epochs=None, iters=8, learning_rate=0.02, batch_size=1)
    trainer = wgtrain.Trainer(model, rows, LoraConfig(rank=2), config)
    list(trainer.run())
    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    path.write_bytes(trainer.adapter_gguf())
    trainer.close()
    return path


def test_an_adapter_is_read_and_hashed_once_an_answer(
    model: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def read(given: Any, config: Any) -> Any:
        done.append("read")
        return api.HOST.read_adapter(given, config)

    def digest(stack: Any) -> bytes:
        done.append("hashed")
        return real(stack)

    real = stack_module._digest
    monkeypatch.setattr(model, "host", replace(model.host, read_adapter=read))
    monkeypatch.setattr(stack_module, "_digest", digest)
    plain = "".join(model.generate(PROMPT, max_tokens=8))
    done.clear()
    pieces = list(model.generate(PROMPT, max_tokens=8, adapters=[(adapter, 1.0)]))
    assert done == ["read", "hashed"] and len(pieces) > 2
    assert "".join(pieces) != plain


def test_pieces_are_the_text_of_the_greedy_tokens(model: Any, adapter: Path) -> None:
    assert repr(model).startswith(f"<Model {model.name}: {model.config.architecture}, ")
    """Also those of many prompts at once, under the same session."""
    tokenizer = model.tokenizer
    prompts = [tokenizer.encode(text, bos=tokenizer.add_bos) for text in (PROMPT, "The dog")]
    for stack in ([], [(adapter, 1.0)], [(adapter, 0.5), (adapter, 0.5)]):
        both = model.complete(prompts, 6, stack)
        for ids, text, made in zip(prompts, (PROMPT, "The dog"), both, strict=True):
            said = list(ids)
            for token in made:
                assert token == int(model.logits(said, stack)[-1].argmax())
                said.append(token)
            pieces = "".join(model.generate(text, max_tokens=6, adapters=stack))
            assert pieces == tokenizer.decode(said)[len(tokenizer.decode(ids)) :]


def test_a_session_serves_all_stacks(model: Any, adapter: Path) -> None:
    stack = model.stack([(adapter, 1.0)])
    first = wgtrain.run(model.session(stack, 10))
    assert wgtrain.run(model.session(model.stack([(adapter.read_bytes(), 1.0)]), 64)) is first
    for other in ([(adapter, 0.5)], []):
        assert wgtrain.run(model.session(model.stack(other), 64)) is first
    larger = wgtrain.run(model.session(stack, 65))
    assert larger.max_tokens == 128


def test_sessions_run_the_kernels_that_the_host_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Choice("matmul_nt", (("TILE_ROWS", 4), ("TILE_COLS", 8)))
    asked = []

    def choose(device: Any, plan: Any, max_row: int, replays: int, mode: str) -> Tuning:
        asked.append((plan.max_tokens, max_row, replays, mode))
        return Tuning({**DEFAULT_CPU.table, "nt/weight_f32": small}, "made by a test")

    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        plain = model.logits([1, 2, 3])
        monkeypatch.setattr(model, "host", replace(model.host, choose_tuning=choose))
        session = wgtrain.run(model.session(model.stack([]), 65))
        assert asked == [(128, 128, 0, "auto")] and session.tuning.origin == "made by a test"
        used = {
            launch.kernel.constants["TILE_ROWS"]
            for launches in session.plan.launches.values()
            for launch in launches
            if launch.family == "nt/weight_f32"
        }
        assert used == {4}
        np.testing.assert_allclose(model.logits([1, 2, 3]), plain, rtol=1e-5, atol=1e-6)


class Bytes:
    """A tokenizer of one byte a token."""

    def decode_bytes(self, tokens: list[int], start: bool) -> bytes:
        return bytes(tokens)


@pytest.mark.parametrize("text", ["plain", "é€🙂", "a🙂b"])
def test_pieces_are_whole_characters(text: str) -> None:
    stream = TextStream(Bytes(), [65])  # type: ignore[arg-type]
    pieces = [stream.read(byte)[1] for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text) and stream.end() == ""
    cut = TextStream(Bytes(), [])  # type: ignore[arg-type]
    assert [cut.read(0xF0)[1], cut.read(0x9F)[1], cut.end()] == ["", "", "\ufffd"]
