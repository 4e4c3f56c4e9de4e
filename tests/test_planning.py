"""`wgtrain plan` and `wgtrain.plan`: beside the device's counter, by layer, for every base."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_model as rm
from click.testing import CliRunner

import wgtrain
from wgtrain import planned as face
from wgtrain.bench.shapes import Shape
from wgtrain.cli.main import cli
from wgtrain.data import Dataset, Row
from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import FileError, OptionError
from wgtrain.files import Adapter, BytesSource, read_gguf
from wgtrain.gpu import UNKNOWN, Limits
from wgtrain.infer.model import Model
from wgtrain.infer.samples import plan_samples
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.needs import PURPOSES, Lengths, Settings
from wgtrain.train.planning import TrainingPlan, make_plan
from wgtrain.train.trainer import Trainer

pytestmark = pytest.mark.gpu
SHAPE = rm.Shape(layers=3, width=256, head_size=64, feed_forward=512, vocabulary=131)
LORA, CONFIG = LoraConfig(rank=6), TrainConfig(iters=1, batch_size=3, seq_len=48)
# As transformers writes them, without what does not count here.
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
GEMMA_4B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def rows(*lengths: int) -> Dataset:
    made = []
    for line, length in enumerate(lengths, 1):
        tokens = np.arange(length, dtype=np.uint32) % 131
        made.append(Row(tokens, tokens.astype(np.int32), line))
    return Dataset(made, "rows", 48, 0, 0, [])


@pytest.fixture(scope="module")
def bytes_() -> bytes:
    return rm.build(SHAPE)


@pytest.fixture
def model(bytes_: bytes) -> Iterator[Model]:
    opened = wgtrain.load_model(bytes_)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (SHAPE, {}),
        (replace(SHAPE, type="Q4_K"), {}),
        (replace(SHAPE, architecture="qwen2", type="Q8_0", tied=True, vocabulary=9001), {}),
        (replace(SHAPE, architecture="qwen3", type="BF16", tied=True), {}),
        *((SHAPE, {"quantize_base": q}) for q in ("nf4", "nf4-double", "int4", "int8")),
    ],
    ids=str,
)
def test_a_plan_is_what_the_device_counts(shape: rm.Shape, options: dict[str, str]) -> None:
    """On the limits of the adapter, with the kernels that are chosen there."""
    data, held = rows(48, 30, 47, 9, 48), rows(40, 48, 48, 48)
    planned = wgtrain.plan(rm.build(shape), LORA, CONFIG, data, held, **options)  # type: ignore[arg-type]
    model = wgtrain.load_model(rm.build(shape), **options)  # type: ignore[arg-type]
    assert model.device.allocated == planned.base_bytes
    trainer = Trainer(model, data, LORA, CONFIG, held)
    trainer.build()
    assert planned.total_bytes == model.device.allocated
    assert planned.needs == trainer.needs
    assert planned.fits is True and not planned.advice
    again = wgtrain.plan(model, LORA, CONFIG, data, held)
    assert again.needs == planned.needs and again.layers == planned.layers
    trainer.close()
    model.close()


def test_layers_sum_up_to_all(bytes_: bytes, model: Model) -> None:
    planned = wgtrain.plan(bytes_, replace(LORA, layers="1"), CONFIG)
    assert [layer.name for layer in planned.layers] == [
        "embedding",
        "blk.0",
        "blk.1",
        "blk.2",
        "head",
    ]
    assert sum(layer.base for layer in planned.layers) == planned.base_bytes
    assert sum(layer.adapter for layer in planned.layers) == planned.adapter_bytes
    assert sum(layer.trainable for layer in planned.layers) == planned.trainable
    trained = [layer.trainable for layer in planned.layers]
    assert trained == [0, 0, 0, planned.trainable, 0]
    values = sum(int(np.prod(t.shape)) for t in model.gguf.tensors.values())
    assert planned.frozen == values and planned.full_bytes == 16 * values
    linears = model.config.linears()
    assert planned.trainable == sum(
        6 * sum(shape) for name, shape in linears.items() if name.startswith("blk.2.")
    )
    saved = 1 - (planned.base_bytes + planned.adapter_bytes) / (16 * values)
    assert planned.saving == pytest.approx(saved) and 0.5 < saved < 1


def test_without_rows_a_batch_is_full(bytes_: bytes) -> None:
    planned = wgtrain.plan(bytes_, LORA, CONFIG)
    assert (planned.needs.max_tokens, planned.needs.max_row) == (3 * 48, 48)
    fewer = wgtrain.plan(bytes_, LORA, CONFIG, rows(40, 5, 5, 5))
    assert (fewer.needs.max_tokens, fewer.needs.max_row) == (50, 40)
    split = wgtrain.plan(bytes_, LORA, replace(CONFIG, valid=0.5), rows(40, 40, 40, 40))
    assert split.needs.max_tokens == 80


def test_an_adapter_to_start_from_brings_its_rank(bytes_: bytes) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"blk.{layer}.attn_v.weight": (
            rng.random((3, 256), np.float32),
            rng.random((128, 3), np.float32),
        )
        for layer in range(3)
    }
    adapter = Adapter("llama", 3, 6.0, tensors, {})
    brought = LoraConfig(rank=3, alpha=6, target_modules="v_proj")
    planned = wgtrain.plan(bytes_, None, CONFIG, init_adapter=adapter)
    assert planned.needs == wgtrain.plan(bytes_, brought, CONFIG).needs
    with pytest.raises(OptionError, match="rank = 6"):
        wgtrain.plan(bytes_, LORA, CONFIG, init_adapter=adapter, given=("rank",))
    small = planned.total_bytes - planned.by_purpose["activations"] + 1000
    squeezed = wgtrain.plan(bytes_, None, CONFIG, init_adapter=adapter, gpu_memory=small // 2)
    assert squeezed.fits is False and "rank" not in squeezed.advice


def test_an_adapter_of_separate_parts_is_planned_for_a_fused_base() -> None:
    """As training takes it: at the rank that both parts have together."""
    data = rm.build(replace(SHAPE, architecture="phi3"))
    tensors = {
        f"blk.{layer}.{part}.weight": (np.ones((3, 256), "f4"), np.ones((rows, 3), "f4"))
        for layer in range(3)
        for part, rows in (("attn_q", 256), ("attn_v", 128))
    }
    adapter = Adapter("phi3", 3, 6.0, tensors, {})
    planned = wgtrain.plan(data, None, CONFIG, init_adapter=adapter)
    assert set(planned.needs.shapes.values()) == {(6, 256), (512, 6)}


def test_types_in_place_of_the_files(bytes_: bytes) -> None:
    sizes = {}
    for type_ in (*MATRIX_TYPES, "nf4", "nf4-double", "int4", "int8"):
        planned = wgtrain.plan(bytes_, LORA, CONFIG, type=type_)
        sizes[type_] = planned.base_bytes
        if type_ in MATRIX_TYPES:
            other = wgtrain.plan(rm.build(replace(SHAPE, type=type_)), LORA, CONFIG)
            assert planned.layers == other.layers and planned.types == other.types
        elif type_ == "nf4":
            same = wgtrain.plan(
                rm.build(replace(SHAPE, type="F16")), LORA, CONFIG, quantize_base=type_
            )
            assert planned.base_bytes == same.base_bytes
    assert sizes["F32"] > sizes["F16"] > sizes["int8"] > sizes["int4"] > sizes["nf4"]
    assert sizes["Q8_0"] > sizes["Q6_K"] > sizes["Q5_K"] > sizes["Q4_K"] > sizes["Q2_K"]
    assert sizes["nf4-double"] < sizes["nf4"]
    with pytest.raises(OptionError, match="type = Q9: allowed are F32, F16"):
        wgtrain.plan(bytes_, type="Q9")
    with pytest.raises(OptionError, match="type, quantize_base"):
        wgtrain.plan(bytes_, type="F16", quantize_base="nf4")
    odd = rm.build(replace(SHAPE, feed_forward=480))
    with pytest.raises(OptionError, match="blocks of 256"):
        wgtrain.plan(odd, type="Q4_K")


@pytest.mark.parametrize("config", [LLAMA_8B, GEMMA_4B], ids=["llama", "gemma"])
def test_large_models_by_their_shapes(config: dict[str, Any], tmp_path: Path) -> None:
    began = time.process_time()
    planned = wgtrain.plan(config, type="Q4_K", gpu_memory="12GiB")
    assert time.process_time() - began < 20
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, str(tmp_path / "config.json")):
        again = wgtrain.plan(path, type="Q4_K", gpu_memory=12 << 30)
        assert again.needs == planned.needs
    frozen, trainable = {
        "llama": (8_030_261_248, 41_943_040),
        "gemma": (3_880_263_168, 29_802_496),
    }[planned.architecture.rstrip("3")]
    full = wgtrain.plan(config)
    assert {planned.frozen, full.frozen} in ({frozen}, {frozen + 64})  # with rope_freqs
    assert planned.trainable == trainable
    assert set(full.types) == {"BF16"}
    assert full.base_bytes == pytest.approx(2 * frozen, rel=0.01)
    assert planned.base_bytes == pytest.approx(4.75 / 8 * frozen, rel=0.01)
    assert planned.fits is True
    # Nothing is bound beyond what every WebGPU adapter grants.
    assert planned.needs.largest_binding[1] <= 128 << 20


def test_a_mix_is_that_of_llama_cpp() -> None:
    """Beside the sizes of files that people have."""
    planned = wgtrain.plan(LLAMA_8B, type="Q4_K_M")
    assert dict(planned.types) == {"Q4_K": 193, "Q6_K": 33}
    assert 4.91e9 < planned.base_bytes < 1.12 * 4.92e9


def test_a_mix_of_seventy_thousand_million() -> None:
    """Where heads share keys and values, attn_v is one size up, as in a file that is quantised."""
    large = {**LLAMA_8B, "num_hidden_layers": 80}
    shared = dict(wgtrain.plan(large, type="Q4_K_M").types)
    own = dict(wgtrain.plan({**large, "num_key_value_heads": 32}, type="Q4_K_M").types)
    assert shared == {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}
    assert own == {"Q4_K": 481, "Q6_K": 81}


def test_shapes_of_other_kinds(bytes_: bytes) -> None:
    shape = Shape("x", "llama", 256, 3, 4, 2, 64, 512, 131, "F32", tied=False)
    assert wgtrain.plan(shape, LORA, CONFIG).needs == wgtrain.plan(bytes_, LORA, CONFIG).needs
    with pytest.raises(FileError, match="mamba"):
        wgtrain.plan({"model_type": "mamba"})
    with pytest.raises(OptionError, match="lora: a LoraConfig is needed"):
        wgtrain.plan(bytes_, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="gpu_memory = '6G': allowed is"):
        wgtrain.plan(bytes_, gpu_memory="6G")
    with pytest.raises(OptionError, match="gpu_memory = 'lots': allowed is"):
        wgtrain.load_model(bytes_, gpu_memory="lots")


def test_it_shows_itself(bytes_: bytes) -> None:
    planned = wgtrain.plan(bytes_, LORA, CONFIG, gpu_memory="900KiB")
    text, html = repr(planned), planned._repr_html_()
    assert planned.fits is False and "it does not fit" in text
    for number in (f"{planned.trainable:,}", f"{planned.frozen:,}", "blk.0 to blk.2, each"):
        assert number in text and number in html
    for purpose in PURPOSES:
        assert purpose in text
    assert "<table>" in html and "<script" not in html
    named = replace(planned, model="<script>")
    assert "<script" not in named._repr_html_()


def test_budget_of_a_model(bytes_: bytes) -> None:
    total = wgtrain.plan(bytes_, LORA, CONFIG).total_bytes
    with wgtrain.load_model(bytes_, gpu_memory=total) as model:
        planned = wgtrain.plan(model, LORA, CONFIG)
        assert planned.memory.nbytes == total and planned.memory.origin == "as given"
        assert planned.fits is True and not planned.needs.recompute
    with wgtrain.load_model(bytes_, gpu_memory=total - 1) as model:
        assert wgtrain.plan(model, LORA, CONFIG).needs.recompute


def command(*arguments: object) -> tuple[int, str]:
    """(exit code, output) of `wgtrain plan`."""
    words = ["plan", *map(str, arguments)]
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.output


def test_the_command(bytes_: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes_)
    options = ["--model", path, "--rank", 6, "--batch-size", 3, "--seq-len", 48, "--iters", 1]
    planned = wgtrain.plan(str(path), LORA, CONFIG)
    code, output = command(*options, "--json")
    said = json.loads(output)
    assert code == 0 and said["total_bytes"] == planned.total_bytes and said["fits"] is True
    assert said["by_purpose"] == planned.by_purpose and list(said["by_purpose"]) == list(PURPOSES)
    assert said["largest_binding"] == planned.needs.largest_binding[1]
    code, output = command(*options)
    assert code == 0 and "largest binding" in output and "it fits" in output
    options += ["--gpu-memory", planned.total_bytes // 3]
    code, output = command(*options, "--grad-checkpoint", "off")
    assert code == 3 and "it does not fit" in output and "\n--" in output
    _, output = command(*options, "--type", "Q4_K", "--json")
    assert json.loads(output)["types"] == {"Q4_K": 23}
    settings = tmp_path / "run.yaml"
    settings.write_text(f"model: {path}\nrank: 6\nbatch_size: 3\nseq_len: 48\n")
    _, output = command("--config", settings, "--json")
    assert json.loads(output)["total_bytes"] == planned.total_bytes


def limited(bytes_: bytes, settings: Settings, **limits: int) -> TrainingPlan:
    gguf = wgtrain.run(read_gguf(BytesSource(bytes_, "m.gguf")))
    small = replace(Limits(), **limits)
    more = {"memory": UNKNOWN, "plan_samples": plan_samples}
    return make_plan(gguf, settings, Lengths(), gpu="", limits=small, **more)


def test_limits_of_a_binding_say_what_helps(bytes_: bytes) -> None:
    """Weights and arenas become segments; activations cannot, and an option that helps is named."""
    settings = Settings(LORA, replace(CONFIG, batch_size=8))
    whole = limited(bytes_, settings)
    limit = whole.needs.largest_binding[1] - 256
    planned = limited(bytes_, settings, binding=limit)
    assert planned.fits is False and "in one binding" in planned.problem
    assert "batch_size, seq_len" in planned.problem and "\nbatch_size = 4: " in planned.advice
    for change in ({"batch_size": 4}, {"seq_len": 24}):
        smaller = limited(bytes_, settings.with_(**change), binding=limit)
        assert smaller.fits is None and smaller.needs.largest_binding[1] <= limit
    split = limited(bytes_, settings.with_(batch_size=1, seq_len=4), binding=160 << 10)
    assert split.fits is None and split.needs.largest_binding[1] <= 160 << 10
    assert split.base_bytes >= whole.base_bytes


def test_without_a_gpu_plans_are_for_any(bytes_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none() -> list[object]:
        return []

    monkeypatch.setattr(face, "find_adapters", none)
    found = wgtrain.plan(bytes_, LORA, CONFIG)
    assert found.fits is None and found.memory == UNKNOWN and "no GPU was found" in str(found)
    assert found.as_json()["fits"] is None and "not known" in str(found)
    assert wgtrain.plan(bytes_, LORA, CONFIG, gpu_memory="1GiB").fits is True
    with pytest.raises(OptionError, match="adapter index 1"):
        wgtrain.plan(bytes_, LORA, CONFIG, adapter_index=1)
