"""Memory: what a plan says it needs, what the device counts, and what the process grows by."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.data import Dataset, Row
from wgtrain.files import Adapter
from wgtrain.infer.model import Model
from wgtrain.train.config import LoraConfig
from wgtrain.train.trainer import Trainer

pytestmark = pytest.mark.gpu
SHAPE = rm.Shape(layers=2, vocabulary=131)


@pytest.fixture
def model() -> Iterator[Model]:
    opened = rm.load(rm.build(SHAPE))
    yield opened
    opened.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("type_", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_a_model_takes_what_its_weights_say(architecture: str, type_: str) -> None:
    shape = rm.Shape(architecture=architecture, feed_forward=160, type=type_)
    model = rm.load(rm.build(shape))
    assert model.device.allocated == model.weights.nbytes
    # Quantised weights stay quantised: not much above their bytes in the file.
    in_file = sum(t.nbytes for t in model.gguf.tensors.values())
    vectors = 256 * len(model.weights.vectors)
    padding = 1.25 if type_ == "Q8_0" else 1.1
    if type_ == "Q4_0":  # rows of 64 values are two packs and one word of scales here
        padding = 1.3
    assert model.weights.nbytes < in_file * padding + vectors + 4096
    device = model.device
    model.close()
    assert device.allocated == 0


@pytest.mark.parametrize("max_tokens", [1, 131])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("capture", ["f32", "bf16"])
def test_a_learner_takes_what_its_plan_says(
    model: Model, max_tokens: int, recompute: bool, capture: str
) -> None:
    before = model.device.allocated
    lora = LoraConfig(rank=5, dropout=0.1, target_modules="all-linear,lm_head")
    learner = rm.planned(
        model, lora, max_tokens=max_tokens, max_row=max_tokens, grad_checkpoint=recompute,
        capture=capture,
    )  # fmt: skip
    gpu.run(learner.build())
    assert model.device.allocated == before + learner.nbytes
    rng = np.random.default_rng(0)
    for length in {1, max_tokens}:
        batch = rm.batch(rng, [length], model.config.vocabulary)
        learner.micro(batch, dropout_key=3)
        learner.update(step=1, learning_rate=1e-3)
        gpu.run(learner.reports())
        gpu.run(learner.evaluate([batch]))
    learner.set_parameters(gpu.run(learner.parameters()))
    learner.set_moments(*gpu.run(learner.moments()))
    assert model.device.allocated == before + learner.nbytes, "steps allocate nothing"
    learner.close()
    assert model.device.allocated == before


def test_a_session_takes_what_its_plan_says(model: Model) -> None:
    before = model.device.allocated
    first = model.logits(list(range(20)))
    assert model._kept.session is not None
    plain = model._kept.session.plan.nbytes
    assert model.device.allocated == before + plain
    np.testing.assert_array_equal(model.logits(list(range(20))), first)
    assert model.device.allocated == before + plain, "the session is kept"
    # A longer text and an adapter each replace it.
    model.logits([1] * 300)
    longer = model._kept.session.plan.nbytes
    assert longer > plain and model.device.allocated == before + longer
    rng = np.random.default_rng(0)
    pair = (rng.random((4, 64), np.float32), rng.random((96, 4), np.float32))
    adapter = Adapter("llama", 4, 8.0, {"blk.1.ffn_up.weight": pair}, {})
    changed = model.logits(list(range(20)), adapters=[(adapter, 1.0)])
    assert not np.array_equal(changed, first)
    stacked = model._kept.slots.stacked
    assert stacked is not None and stacked.nbytes > 4 * (96 + 64) * 4
    assert model.device.allocated == before + model._kept.session.plan.nbytes + stacked.nbytes
    device = model.device
    model.close()
    assert device.allocated == 0


def test_a_run_has_the_memory_that_a_model_kept_for_requests(model: Model) -> None:
    before = model.device.allocated
    kept = model.logits([1] * 300)
    assert model.device.allocated > before
    ids = np.arange(9, dtype=np.int32)
    rows = Dataset([Row(ids.astype(np.uint32), ids, 1)], "rows", 64)
    trainer = Trainer(model, rows)
    assert model.device.allocated == before
    trainer.build()
    assert model.device.allocated == before + trainer.learner.nbytes
    np.testing.assert_array_equal(model.logits([1] * 300), kept)
    trainer.close()


def test_learners_and_sessions_stand_side_by_side(model: Model) -> None:
    before = model.device.allocated
    one, two = rm.learner(model), rm.learner(model, LoraConfig(rank=2))
    model.logits([1, 2, 3])
    assert model._kept.session is not None
    session = model._kept.session.plan.nbytes
    assert model.device.allocated == before + one.nbytes + two.nbytes + session
    one.close()
    assert model.device.allocated == before + two.nbytes + session
    one.close()  # once is enough
    assert model.device.allocated == before + two.nbytes + session
    device = model.device
    model.close()
    two.close()
    assert device.allocated == 0


@pytest.mark.usefixtures("own_device")
def test_a_model_that_is_closed_lets_go_of_its_device() -> None:
    """Handles keep a device alive, with tens of MB of its driver's blocks; none may be left."""
    opened = rm.load(rm.build(SHAPE))
    learner = rm.learner(opened)
    opened.logits([1, 2, 3])
    handle = weakref.ref(opened.device._device)  # type: ignore[attr-defined]
    assert handle() is not None
    learner.close()
    opened.close()
    gc.collect()
    assert handle() is None


MEASURE = """
import ctypes, sys, time
import numpy as np
import random_model as rm
from wgtrain import gpu
from wgtrain.train.config import LoraConfig

def resident():
    ctypes.CDLL(None).malloc_trim(0)  # what is free already
    return int(open("/proc/self/statm").read().split()[1]) * 4096

SHAPE = rm.Shape(width=256, heads=4, kv_heads=4, head_size=64, feed_forward=768, layers=4,
                 vocabulary=2000)
def learner(model, rank, tokens, row, **lora):
    made = rm.planned(model, LoraConfig(rank=rank, **lora), max_tokens=tokens, max_row=row)
    gpu.run(made.build())
    return made

def step(model, made, tokens):
    batch = rm.batch(np.random.default_rng(0), [tokens], model.config.vocabulary)
    made.micro(batch)
    made.update(step=1, learning_rate=1e-3)
    gpu.run(made.reports())
    gpu.run(made.evaluate([batch]))

def touch(model, made):
    # lavapipe gives a buffer memory when it is first written, page by page.
    zeros = np.zeros(1 << 20, np.uint8)
    for buffer in made.plan._owned:
        for at in range(0, buffer.size, len(zeros)):
            model.device.write(buffer, at, zeros[: min(len(zeros), buffer.size - at)])
            gpu.run(model.device.read(buffer, at, 4))

model = rm.load(rm.build(SHAPE))
if model.device.info.type != "CPU":
    print("hardware")
    raise SystemExit
# Every kernel is compiled before, those for ranks above 128 by an adapter of one matrix a layer.
for lora in ({"rank": 132, "target_modules": "q_proj"}, {"rank": 4}):
    small = learner(model, tokens=64, row=64, **lora)
    touch(model, small)
    step(model, small, 64)
    small.close()
before = resident()
# A large rank: arenas are to count as well as activations.
large = learner(model, 256, int(sys.argv[1]), 1024)
built = resident()
touch(model, large)
step(model, large, 64)  # all buffers stay touched; what a step itself takes shows too
after = resident()
nbytes = large.nbytes
large.close()
model.close()
print(nbytes, built - before, after - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_grows_by_what_the_plan_says() -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, "4000"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.stdout.strip() == "hardware":
        pytest.skip("a GPU's memory is its own")
    assert result.returncode == 0, result.stderr[-3000:]
    nbytes, built, grown, left = map(int, result.stdout.split())
    print(f"plan {nbytes:,}, built {built:,}, grown {grown:,}, left {left:,}")
    assert nbytes > 500e6
    assert abs(grown - nbytes) < 0.05 * nbytes, (nbytes, grown)
    assert left < 0.1 * nbytes, (nbytes, left)


LOAD = """
import sys
import random_model as rm

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

class File:
    name = "file"
    def __init__(self, path):
        self.file = open(path, "rb", buffering=0)
        self.size = self.file.seek(0, 2)
    def read_range(self, offset, n):
        self.file.seek(offset)
        return self.file.read(n)

warm = rm.load(File(sys.argv[1]))
if warm.device.info.type != "CPU":
    print("hardware")
    raise SystemExit
warm.close()
before = resident()
model = rm.load(File(sys.argv[2]))
grown = resident()
nbytes = model.weights.nbytes
model.close()
print(nbytes, grown - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("type_", ["F32", pytest.param("Q8_0", marks=pytest.mark.slow)])
def test_loading_grows_the_process_by_the_weights(type_: str, tmp_path: Path) -> None:
    shape = rm.Shape(
        width=768, heads=8, kv_heads=8, head_size=96, feed_forward=2048, layers=2,
        vocabulary=8000, type="F32",
    )  # fmt: skip
    if type_ == "Q8_0":
        shape = replace(shape, width=1024, head_size=128, feed_forward=3072, layers=4, type=type_)
    (tmp_path / "small").write_bytes(rm.build(rm.Shape(type=type_)))
    (tmp_path / "large").write_bytes(rm.build(shape))
    result = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "small", tmp_path / "large"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.stdout.strip() == "hardware":
        pytest.skip("a GPU's memory is its own")
    assert result.returncode == 0, result.stderr[-3000:]
    nbytes, grown, left = map(int, result.stdout.split())
    print(f"weights {nbytes:,}, grown {grown:,}, left {left:,}")
    assert nbytes > 60e6
    assert nbytes * 0.95 < grown < nbytes + (32 << 20), (nbytes, grown)
    assert left < 16 << 20, left
