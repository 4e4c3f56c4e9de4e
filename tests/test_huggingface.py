"""Models in Hugging Face folders, against transformers and against the GGUF of the same model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import tiny

import wgtrain
from wgtrain import gpu
from wgtrain.cli import main as cli
from wgtrain.errors import FileError
from wgtrain.files import BytesSource, read_range, write_safetensors
from wgtrain.files.huggingface import read_folder
from wgtrain.model.config import read_config

TOKENS = [5, 0, 17, 17, 96, 3, 42, 8, 61, 30, 2]
CORPUS = ["the cat sat on the mat", "that cat then sat there", "a hat and a mat, at that"] * 3

Tensors = dict[str, np.ndarray]


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def config(spec: tiny.Spec) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    return {
        "architectures": ["SomethingForCausalLM"],
        "model_type": spec.architecture,
        "hidden_act": "silu",
        "hidden_size": spec.dim,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": spec.context,
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied,
        "sliding_window": None,
        "torch_dtype": "float32",
    }


def write(folder: Path, settings: dict[str, Any], tensors: Tensors) -> Path:
    """A folder without a tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(write_safetensors(tensors, {"format": "pt"}))
    return folder


def by_hand(folder: Path, name: str, **changes: Any) -> Path:
    """The folder of a tiny model, written without transformers."""
    base = tiny.tiny(name)
    return write(folder, config(base.spec) | changes, base.weights)


def saved(folder: Path, name: str, dtype: str = "float32", **options: Any) -> Path:
    """The same, written by transformers."""
    tiny.tiny(name).hf_model(dtype).save_pretrained(folder, **options)
    return folder


def reference(folder: Path, adapter: Path | None = None) -> np.ndarray:
    """The logits of what transformers, and PEFT, load from a folder; float32."""
    torch, transformers = needs.package("torch"), needs.package("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = needs.package("peft").PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor([TOKENS])).logits[0].numpy()


def logits(model: Any, **options: Any) -> np.ndarray:
    with wgtrain.load_model(model, limits="default") as opened:
        return opened.logits(TOKENS, **options)


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize("name", tiny.SPECS)
def test_logits(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name)
    ours = logits(tmp_path)
    assert relative(ours, reference(tmp_path)) < 1e-5
    np.testing.assert_array_equal(ours, logits(tiny.tiny(name).gguf))


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "bfloat16"), ("qwen2", "bfloat16"), ("qwen3", "float16")]
)
def test_half_precision(name: str, dtype: str, tmp_path: Path) -> None:
    saved(tmp_path, name, dtype)
    assert relative(logits(tmp_path), reference(tmp_path)) < 1e-5


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_shards(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    np.testing.assert_array_equal(logits(tmp_path), logits(tiny.tiny(name).gguf))


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny.SPECS)
def test_older_configuration(name: str, tmp_path: Path) -> None:
    """Also a Mistral, which is a `llama` to GGUF, and buffers that old checkpoints hold."""
    base = tiny.tiny(name)
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(7)}
    changes = {"model_type": "mistral"} if name == "llama" else {}
    write(tmp_path, config(base.spec) | changes, base.weights | rotary)
    np.testing.assert_array_equal(logits(tmp_path), logits(base.gguf))


@pytest.mark.gpu
def test_defaults_of_a_configuration(tmp_path: Path) -> None:
    base = tiny.tiny("llama")
    spec = base.spec
    settings = config(spec)
    for key in ("head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act"):
        del settings[key]
    write(tmp_path, settings, base.weights)
    np.testing.assert_array_equal(logits(tmp_path), logits(base.gguf))
    # Without num_key_value_heads it has as many as heads, and the tensors no longer fit.
    del settings["num_key_value_heads"]
    write(tmp_path, settings, base.weights)
    with pytest.raises(FileError, match=r"attn_k.weight has shape \(20, 60\), \(60, 60\) is"):
        wgtrain.load_model(tmp_path)


@pytest.mark.gpu
def test_a_stored_head_may_be_tied(tmp_path: Path) -> None:
    base = tiny.tiny("qwen2")
    head = base.weights["model.embed_tokens.weight"].copy()
    write(tmp_path, config(base.spec), base.weights | {"lm_head.weight": head})
    np.testing.assert_array_equal(logits(tmp_path), logits(base.gguf))
    head[300, 47] += 1
    write(tmp_path, config(base.spec), base.weights | {"lm_head.weight": head})
    with wgtrain.load_model(tmp_path, limits="default") as model:
        assert not model.config.tied_head
        assert "lm_head.weight is there and differs" in model.gguf.notes[0]
        assert relative(model.logits(TOKENS), logits(base.gguf)) > 1e-3


@pytest.mark.gpu
@pytest.mark.oracle
def test_a_head_of_its_own_though_it_is_tied(tmp_path: Path) -> None:
    base = tiny.tiny("qwen2")
    head = base.weights["model.embed_tokens.weight"] * np.float32(1.5)
    write(tmp_path, config(base.spec), base.weights | {"lm_head.weight": head})
    assert relative(logits(tmp_path), reference(tmp_path)) < 1e-5


class Waiting:
    """A source as a page has it: ranges are awaited, and none may be larger than 10 kB."""

    def __init__(self, path: Path) -> None:
        self.data, self.name = path.read_bytes(), path.name
        self.size, self.largest = len(self.data), 0

    async def read_range(self, offset: int, n: int) -> bytes:
        self.largest = max(self.largest, n)
        return self.data[offset : offset + n]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_ranges(name: str, tmp_path: Path) -> None:
    """Any range of a tensor is that range of it in GGUF's order, and little more is read for it."""
    by_hand(tmp_path, name)
    base = tiny.tiny(name)
    files = {path.name: Waiting(path) for path in tmp_path.iterdir()}
    source, gguf = gpu.run(read_folder(files, "x"))
    config = read_config(gguf)
    rng = np.random.default_rng(1)
    everything = bytes(gpu.run(read_range(source, 0, source.size)))
    files["model.safetensors"].largest = 0
    for key in [*config.matrices(), *config.vectors()]:
        tensor = gguf.tensors[key]
        module, kind = base.spec.hf_name(key.rsplit(".", 1)[0]), key.rsplit(".", 1)[1]
        rows = base.spec.to_file_order(module, base.weights[f"{module}.{kind}"])
        whole = rows.tobytes()
        assert everything[tensor.offset : tensor.offset + tensor.nbytes] == whole
        for _ in range(5):
            first, last = np.sort(rng.integers(0, len(whole) + 1, 2)).tolist()
            last = min(last, first + 500)
            data = gpu.run(read_range(source, tensor.offset + first, last - first))
            assert bytes(data) == whole[first:last], (key, first, last)
    heads = 2 * base.spec.head_dim * base.spec.dim * 4  # the range may touch two
    assert files["model.safetensors"].largest <= (heads if name == "llama" else 500)


def test_fingerprint(tmp_path: Path) -> None:
    """It depends on every file that a model is made of, and on nothing else."""

    def now() -> str:
        from wgtrain.infer.opening import _fingerprint

        files = {p.name: BytesSource(p.read_bytes(), p.name) for p in tmp_path.iterdir()}
        return gpu.run(_fingerprint(*gpu.run(read_folder(files, "x"))))

    by_hand(tmp_path, "llama")
    seen = [now()]
    (tmp_path / "README.md").write_text("something")
    assert now() == seen[0]
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ):
        (tmp_path / file).write_text("{}")
        seen.append(now())
    by_hand(tmp_path, "llama", torch_dtype="bfloat16")
    seen.append(now())
    weights = tiny.tiny("llama").weights
    weights = weights | {"model.norm.weight": weights["model.norm.weight"] * 2}
    write(tmp_path, config(tiny.SPECS["llama"]), weights)
    seen.append(now())
    assert len(set(seen)) == len(seen) == 7


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "type": ("llama", {"model_type": "xyz"}, "model_type 'xyz' is not supported; supported"),
    "no type": ("llama", {"model_type": None}, "model_type None"),
    "moe": ("llama", {"model_type": "mixtral"}, "'mixtral' is not supported: it routes tokens"),
    "states": ("llama", {"model_type": "mamba2"}, "'mamba2' is not supported: it has layers"),
    "picture": ("llama", {"model_type": "clip"}, "'clip' is not supported: it is no causal"),
    "dynamic": (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type 'dynamic' is not supported, only 'default', 'linear'",
    ),
    "llama3": (
        "qwen3",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "rope_parameters: rope_type 'llama3'",
    ),
    "linear": (
        "llama",
        {"rope_scaling": {"type": "linear"}},
        "rope_scaling: factor is missing; a number above 0",
    ),
    "unread": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0, "warp": 3}},
        "rope_scaling: 'warp' = 3 is not supported",
    ),
    "partial": (
        "qwen3",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "'partial_rotary_factor' = 0.5",
    ),
    "per layer": ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is .*one for each"),
    "window": ("llama", {"sliding_window": 64}, "sliding_window = 64"),
    "layers": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["full_attention", "chunked_attention", "full_attention"],
        },
        "layer_types: 'chunked_attention'",
    ),
    "bias": ("qwen3", {"attention_bias": True}, "attention_bias = True"),
    "mlp bias": ("qwen2", {"mlp_bias": True}, "mlp_bias = True"),
    "act": ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "quantised": (
        "llama",
        {"quantization_config": {"quant_method": "gptq"}},
        "quantization_config.*take its GGUF",
    ),
    "experts": ("llama", {"num_local_experts": 8}, "num_local_experts = 8"),
    "caps": ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    "code": ("llama", {"auto_map": {"AutoModelForCausalLM": "a.B"}}, "auto_map: .* code of its"),
    "not a number": ("llama", {"hidden_size": "60"}, "hidden_size is '60'; an integer from 1"),
    "huge": ("llama", {"rope_theta": 10**400}, "rope_theta is 1000+.*; a number above 0"),
    "infinite": ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; a number above 0"),
    "untied": ("qwen2", {"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
    "tied": ("qwen2", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; true or false"),
    "rows": (
        "llama",
        {"vocab_size": 98},
        r"embed_tokens.weight has shape \(97, 60\), vocab_size 98",
    ),
    "heads": ("llama", {"num_attention_heads": 4}, "attn_q.weight has shape"),
}


_GRANITE_4: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "num_local_experts": 0,
    "shared_intermediate_size": 100,
    "layer_types": ["attention"] * 3,
    "mamba_n_heads": 4,
    "position_embedding_type": "rope",
}
REFUSED |= {
    "experts of a granite": ("llama", _GRANITE_4 | {"num_local_experts": 2}, "experts = 2 is not"),
    "experts by default": ("llama", _GRANITE_4 | {"num_local_experts": None}, "experts = 8 is not"),
    "layers with states": (
        "llama",
        _GRANITE_4 | {"layer_types": ["attention", "mamba", "attention"]},
        r"layers with states \(mamba\) are not supported; of this family, a model whose 3",
    ),
    "states by default": ("llama", _GRANITE_4 | {"layer_types": None}, "layer_types is None: lay"),
    "positions": ("llama", _GRANITE_4 | {"position_embedding_type": "alibi"}, "'alibi' is not"),
    "states that are none": (
        "llama",
        _GRANITE_4 | {"mamba_d_head": 7},
        "mamba_n_heads 4 of 7 values .* do not make mamba_expand x hidden_size, 120",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    name, changes, message = REFUSED[case]
    by_hand(tmp_path, name, **changes)
    with pytest.raises(FileError, match=message) as caught:
        wgtrain.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_windows_that_are_not_used(tmp_path: Path) -> None:
    by_hand(tmp_path, "qwen2", use_sliding_window=False, sliding_window=64, max_window_layers=0)
    files = {p.name: BytesSource(p.read_bytes()) for p in tmp_path.iterdir()}
    read_config(gpu.run(read_folder(files))[1])


def test_all_problems_of_a_configuration_at_once(tmp_path: Path) -> None:
    by_hand(tmp_path, "llama", clip_qkv=3, hidden_act="gelu", rope_theta="much")
    with pytest.raises(FileError) as caught:
        wgtrain.load_model(tmp_path)
    for part in ("config.json", "clip_qkv = 3", "hidden_act = 'gelu'", "rope_theta is 'much'"):
        assert part in str(caught.value)


def tensors_of(change: Callable[[Tensors], Any]) -> Tensors:
    weights = dict(tiny.tiny("llama").weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda w: [
                w.pop(f"model.layers.1.{m}.weight") for m in ("mlp.up_proj", "input_layernorm")
            ],
            ["blk.1.ffn_up.weight (100, 60) is missing", "blk.1.attn_norm.weight (60,) is missing"],
        ),
        (
            lambda w: w.update({"model.norm.weight": np.ones(60), "x.y": np.ones(2, np.float32)}),
            [
                "model.norm.weight of model.safetensors has type F64",
                "'x.y' of model.safetensors is not",
            ],
        ),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": np.ones(60, np.float32)}),
            ["tensor blk.1.attn_q.bias (60,) is missing"],
        ),
        (
            lambda w: w.update({"token_embd.weight": w.pop("model.embed_tokens.weight")}),
            ["'token_embd.weight' of model.safetensors is not known"],
        ),
    ],
)
def test_wrong_tensors(
    change: Callable[[Tensors], Any], messages: list[str], tmp_path: Path
) -> None:
    write(tmp_path, config(tiny.SPECS["llama"]), tensors_of(change))
    with pytest.raises(FileError) as caught:
        wgtrain.load_model(tmp_path)
    for message in messages:
        assert message in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(FileError, match=message) as caught:
            wgtrain.load_model(tmp_path)
        assert str(tmp_path) in str(caught.value)

    refused("config.json is missing; there is nothing")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused("an adapter, not a base model; --adapter uses it")
    by_hand(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(r"neither model.safetensors nor .* is there .*pytorch_model.bin")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "../2.safetensors"}}))
    refused(r"names files that are missing: \.\./2.safetensors, 1.safetensors")
    index.write_text(json.dumps({"weight_map": ["a"]}))
    refused("weight_map is")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model_type": "llama"}')
    refused("config.json: 'model_type' stands there twice")
    shutil.rmtree(tmp_path)
    refused("No such file")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    by_hand(tmp_path, "llama")
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    (tmp_path / "model.safetensors").rename(first)
    shutil.copy(first, second)
    weight_map = {"weight_map": {"a": first.name, "b": second.name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(FileError, match=r"is in 1.safetensors and in 2.safetensors"):
        wgtrain.load_model(tmp_path)


@pytest.mark.gpu
def test_without_tokenizer(tmp_path: Path) -> None:
    by_hand(tmp_path, "qwen3")
    with wgtrain.load_model(tmp_path, limits="default") as model:
        assert model.logits(TOKENS).shape == (len(TOKENS), 283)
        assert model.base_name == str(tmp_path)
        for _ in range(2):
            with pytest.raises(FileError, match=r"tokenizer.json is missing; there is config.json"):
                model.tokenizer  # noqa: B018
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileError, match=r"tokenizer.model is read with its model, not alone"):
        wgtrain.load_tokenizer(tmp_path)


def add_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of fewer pieces than the model has rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


def write_rows(path: Path) -> Path:
    rows = [{"prompt": text[:6], "completion": text[6:]} for text in CORPUS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.gpu
@pytest.mark.oracle
def test_training(tmp_path: Path) -> None:
    """The adapter of a folder is that of the GGUF, and PEFT puts it on the folder's model."""
    base, folder = tiny.tiny("llama-tied"), tmp_path / "base"
    saved(folder, "llama-tied", max_shard_size="50KB")
    add_tokenizer(folder)
    data = write_rows(tmp_path / "rows.jsonl").read_bytes()
    adapters, peft = [], {}
    with wgtrain.load_model(folder, limits="default") as model:
        rows = wgtrain.load_dataset(data, model, seq_len=40)
    for source in (folder, base.gguf):
        with wgtrain.load_model(source, limits="default") as model:
            lora = wgtrain.LoraConfig(rank=3, alpha=12)
            options = wgtrain.TrainConfig(iters=3, batch_size=3, learning_rate=0.05, seq_len=40)
            trainer = wgtrain.Trainer(model, rows, lora, options)
            trainer.fit()
            adapters.append(trainer.adapter_gguf())
            if source is folder:
                peft = trainer.adapter_peft()
                ours = model.logits(TOKENS, adapters=[(adapters[0], 1.0)])
            trainer.close()
    first, second = [wgtrain.read_adapter_gguf(data).tensors for data in adapters]
    assert first.keys() == second.keys()
    for name, pair in first.items():
        np.testing.assert_array_equal(pair[0], second[name][0], name)
        np.testing.assert_array_equal(pair[1], second[name][1], name)
    out = tmp_path / "adapter"
    out.mkdir()
    for name, content in peft.items():
        (out / name).write_bytes(content)
    assert json.loads(peft["adapter_config.json"])["base_model_name_or_path"] == str(folder)
    expected = reference(folder, out)
    assert relative(expected, reference(folder)) > 0.05
    assert relative(ours, expected) < 1e-5
    np.testing.assert_array_equal(ours, logits(folder, adapters=[(out, 1.0)]))


@pytest.mark.gpu
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on a folder, resumed, and refused once the folder has changed."""
    folder, run = tmp_path / "base", tmp_path / "run"
    by_hand(folder, "qwen2", attention_dropout=0.1)
    add_tokenizer(folder)
    data = write_rows(tmp_path / "rows.jsonl")

    def wgtrain(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main(["train", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out + captured.err

    def unfinish() -> None:
        shutil.rmtree(max((run / "checkpoints").iterdir()))
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))

    options = ("--iters", 3, "--save-every", 1, "--rank", 2, "--seq-len", 40)
    code, said = wgtrain("--model", folder, "--data", data, "--out", run, *options)
    assert code == 0, said
    assert "attention_dropout = 0.1: dropout within the base model is not applied" in said
    adapter = (run / "adapter.gguf").read_bytes()
    unfinish()
    code, said = wgtrain("--resume", run)
    assert (code, "resuming after step 2" in said) == (0, True), said
    assert (run / "adapter.gguf").read_bytes() == adapter
    unfinish()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    code, said = wgtrain("--resume", run)
    assert code == 2
    assert f"model: {folder} has changed since the run" in said
