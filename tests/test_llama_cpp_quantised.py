"""Files that llama.cpp itself quantised: the types that its mixes have, logits beside its own on
the same numbers in F32, and gradients.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import random_model as rm
from figures import record
from llama_cpp_oracle import LlamaCpp, llama_cpp
from random_blocks import dequantised, encoded
from specs import Spec
from tiny import random_weights, write

import wgtrain
from wgtrain import gpu
from wgtrain.model.converted import CONVERTED

pytestmark = pytest.mark.oracle

Quantise = Callable[[Spec, str], Path]
BOUND = 1e-5  # largest difference of logits over their range, and of gradients over theirs
F32 = gguf.GGMLQuantizationType.F32
# H / K = 4, so that attn_v has other types than the rest
WIDE = Spec("llama", 256, 4, 1, 64, 512, 4, 97, tied=False, tokenizer="spm")
TIED = Spec("llama", 256, 4, 2, 64, 256, 2, 97, tied=True, tokenizer="spm")
NARROW = Spec("llama", 96, 4, 2, 24, 160, 2, 97, tied=False, tokenizer="spm")  # no K-quants fit
MIXES = [
    (WIDE, "Q4_K_M", {"Q4_K", "Q6_K"}),
    (WIDE, "Q5_K_M", {"Q5_K", "Q6_K"}),
    (WIDE, "Q3_K_L", {"Q3_K", "Q5_K", "Q6_K"}),
    (WIDE, "Q6_K", {"Q6_K"}),
    (WIDE, "IQ4_XS", {"IQ4_XS", "Q5_K", "Q6_K"}),
    (WIDE, "Q2_K", {"Q2_K", "Q3_K", "Q4_K", "Q6_K"}),
    (TIED, "Q4_K_M", {"Q4_K", "Q6_K"}),
    (TIED, "IQ4_NL", {"IQ4_NL", "Q6_K"}),
    (NARROW, "Q4_K_M", {"Q5_0", "Q8_0"}),
    (NARROW, "Q5_K_M", {"Q5_1", "Q8_0"}),
    (NARROW, "IQ4_XS", {"IQ4_NL", "Q8_0"}),
    (NARROW, "Q2_K", {"Q4_0", "Q8_0"}),
    (NARROW, "Q4_1", {"Q4_1", "Q8_0"}),
    (WIDE, "IQ3_S", {"IQ3_S", "Q4_K", "Q6_K"}),  # the first is converted
]


@pytest.fixture(scope="module")
def quantise(tmp_path_factory: pytest.TempPathFactory) -> Quantise:
    """A model of a shape as llama.cpp quantises it to one of its mixes."""
    folder = tmp_path_factory.mktemp("quantised")

    def made(spec: Spec, mix: str) -> Path:
        plain, path = folder / f"{spec.dim} {spec.tied}.gguf", folder / f"{spec.dim} {mix}.gguf"
        if not plain.exists():
            weights = {name: (w, F32) for name, w in random_weights(spec, 3).items()}
            plain.write_bytes(write(spec, weights))
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
        params.nthread = 1
        status = llama_cpp.llama_model_quantize(
            str(plain).encode(), str(path).encode(), ctypes.byref(params)
        )
        assert status == 0
        return path

    return made


def plain_weights(path: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """What the tensors of a file mean to us, and which quantised types they have."""
    plain, kinds = {}, set()
    for tensor in gguf.GGUFReader(path).tensors:
        type_, rows = tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)]
        values = np.array(tensor.data)
        if type_ != "F32":
            kinds.add(type_)
            values = dequantised(values, type_)
        if type_ in CONVERTED:
            values = dequantised(encoded(values.reshape(rows), "Q8_0"), "Q8_0")
        plain[tensor.name] = values.reshape(rows)
    return plain, kinds


def f32_file(spec: Spec, weights: dict[str, np.ndarray]) -> bytes:
    return write(spec, {name: (w, F32) for name, w in weights.items()})


@pytest.mark.parametrize(("spec", "mix", "types"), MIXES)
def test_logits(quantise: Quantise, spec: Spec, mix: str, types: set[str]) -> None:
    path = quantise(spec, mix)
    plain, kinds = plain_weights(path)
    assert kinds == types
    tokens = np.random.default_rng(0).integers(3, spec.vocab, 24).astype(np.uint32)
    with wgtrain.load_model(path) as model:
        ours = model.logits(tokens)
    theirs = LlamaCpp(f32_file(spec, plain)).logits(tokens)
    error = np.abs(ours - theirs).max() / np.ptp(theirs)
    record("logits on llama.cpp's own files", mix=mix, width=spec.dim, error=error)
    assert error < BOUND
    # With every scale of one tensor a little off.
    plain["blk.1.ffn_up.weight"] = plain["blk.1.ffn_up.weight"] * np.float32(1.01)
    wrong = LlamaCpp(f32_file(spec, plain)).logits(tokens)
    assert np.abs(ours - wrong).max() / np.ptp(theirs) > 10 * BOUND


@pytest.mark.parametrize(("spec", "mix", "types"), [MIXES[0], MIXES[8]])
def test_gradients(quantise: Quantise, spec: Spec, mix: str, types: set[str]) -> None:
    """Those of an adapter are the ones on an F32 file of the same numbers, which PEFT judges."""
    path, rng = quantise(spec, mix), np.random.default_rng(0)
    plain, _ = plain_weights(path)
    batch = rm.batch(rng, [17, 30], spec.vocab)
    found = []
    for data in (path, f32_file(spec, plain)):
        with wgtrain.load_model(data) as model:
            learner = rm.learner(model, max_tokens=47, max_row=30)
            learner.micro(batch)
            found.append(gpu.run(learner.gradients()))
            learner.close()
    ours, theirs = found
    assert set(ours) == set(theirs) and len(ours) == 2 * 7 * spec.layers
    for name, gradient in ours.items():
        assert np.abs(gradient - theirs[name]).max() < BOUND * np.abs(theirs[name]).max(), name
