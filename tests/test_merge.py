"""`wgtrain merge`: merged is what base and adapters are, in a GGUF of any type and in a folder, for
llama.cpp and transformers too; what it must not do.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import gguf as oracle
import hf_models
import needs
import numpy as np
import pytest
import test_huggingface as folders
import test_parts as parted
import test_quantize as quantising
from random_blocks import dequantised
from tiny import random_adapter, targets, tiny

import wgtrain as package
from wgtrain.cli import main as cli
from wgtrain.errors import FileError, OptionError
from wgtrain.files import (
    Adapter,
    parse_gguf,
    read_safetensors,
    write_adapter_gguf,
    write_safetensors,
)
from wgtrain.files.file_types import TARGETS
from wgtrain.merging import effect, read_adapters

TOKENS = [5, 0, 17, 17, 96, 3, 42, 8, 61, 30, 2]
Files = dict[str, Any]


def adapter_for(
    name: str, rank: int, seed: int, only: list[str] | None = None, kind: str = "F32"
) -> Adapter:
    """Random pairs on all linears of a tiny model, and on its head where that is its own."""
    spec = tiny(name, kind).spec
    names = targets(spec, list(spec.linears) if only is None else only)
    if not spec.tied and only is None:
        names.append("output")
    pairs = random_adapter(spec, names, rank, seed)
    return Adapter(spec.architecture, rank, 1.5 * rank, pairs)


def wgtrain(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main(["merge", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


def logits(model: Any, adapters: Any = ()) -> np.ndarray:
    with package.load_model(model, limits="default") as opened:
        return opened.logits(TOKENS, adapters)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference over the range."""
    return float(np.abs(a - b).max() / np.ptp(a))


def raw(data: bytes, name: str) -> bytes:
    info = parse_gguf(data).tensors[name]
    return data[info.offset : info.offset + info.nbytes]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "llama-fused"])
def test_merged_is_stacked(name: str) -> None:
    base = tiny(name)
    one, two = adapter_for(name, 4, 1), adapter_for(name, 3, 2, ["attn_output", "ffn_down"])
    if name == "llama-fused":  # made where q, k and v are apart
        one = adapter_for("llama-linear", 4, 1)
    with package.load_model(base.gguf, limits="default") as opened:
        plain = opened.logits(TOKENS)
        for stack in ([(one, 0.5)], [(one, -1.0)], [(one, 1.0), (two, 0.25)]):
            made = package.merge(base.gguf, stack)
            assert made.exact and made.data is not None
            merged, stacked = logits(made.data), opened.logits(TOKENS, stack)
            assert apart(stacked, merged) < 1e-5
            assert apart(stacked, plain) > 1e-2  # negative controls: nothing merged, too little
            if len(stack) > 1:
                assert apart(opened.logits(TOKENS, stack[:1]), merged) > 1e-3


def test_strength_0_copies() -> None:
    base = tiny("llama", "Q8_0").gguf
    made = package.merge(base, [(adapter_for("llama", 4, 1, kind="Q8_0"), 0.0)])
    assert made.exact and made.data is not None
    for name in parse_gguf(base).tensors:
        assert raw(made.data, name) == raw(base, name)


def test_tensors_are_encoded_from_the_sum() -> None:
    """By the `gguf` package; what no adapter touches stays as it is, metadata too."""
    base = tiny("llama", "Q8_0").gguf
    adapter = adapter_for("llama", 4, 1, ["attn_q", "ffn_up"], "Q8_0")
    made = package.merge(base, [(adapter, 0.5), (adapter, 0.25)])
    assert made.data is not None and not made.exact
    old, new = parse_gguf(base), parse_gguf(made.data)
    for name, info in old.tensors.items():
        assert (new.tensors[name].type, new.tensors[name].shape) == (info.type, info.shape)
        if name not in adapter.tensors:
            assert raw(made.data, name) == raw(base, name)
            continue
        a, b = (m.astype(np.float64) for m in adapter.tensors[name])
        rows = np.frombuffer(raw(base, name), np.uint8).reshape(info.shape[0], -1)
        values = dequantised(rows, info.type) + 0.75 * adapter.alpha / adapter.rank * (b @ a)
        kind = oracle.GGMLQuantizationType[info.type]
        expected = oracle.quants.quantize(values.astype(np.float32), kind).tobytes()
        assert raw(made.data, name) == expected != raw(base, name)
    told = "LoRA adapters merged by wgtrain: adapter (scale 0.5, rank 4, alpha 6), adapter (sc"
    assert new.metadata["general.description"].startswith(told)
    kept = {key: str(value) for key, value in old.metadata.items()}
    assert {key: str(new.metadata[key]) for key in kept} == kept and new.kinds == old.kinds


def wide(folder: Path, kind: str) -> tuple[Path, Adapter]:
    """A base whose rows hold blocks of 256 values."""
    spec = quantising.SPECS["wide"]
    pairs = random_adapter(spec, targets(spec, ["attn_q", "attn_v", "output"]), 4, 7, 0.1)
    return quantising.write_base(folder, "wide", kind), Adapter("llama", 4, 4.0, pairs)


@pytest.mark.parametrize("kind", TARGETS)
def test_types(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `wgtrain quantize` makes of the merged F32."""
    base, adapter = wide(tmp_path, "F32")
    plain, expected = tmp_path / "plain.gguf", tmp_path / "expected.gguf"
    package.merge(base, [(adapter, 1.0)], plain)
    assert quantising.quantize(capsys, plain, "--type", kind, "--out", expected)[0] == 0
    made = package.merge(base, [(adapter, 1.0)], type=kind.lower())
    assert made.data is not None and made.exact == (kind == "F32")
    ours, theirs = parse_gguf(made.data), parse_gguf(expected.read_bytes())
    assert ours.metadata.keys() == theirs.metadata.keys()
    assert ours.metadata["general.file_type"] == TARGETS[kind].number
    for name, info in theirs.tensors.items():
        assert ours.tensors[name].type == info.type
        assert raw(made.data, name) == raw(expected.read_bytes(), name)


def test_types_that_are_not_written(tmp_path: Path) -> None:
    base, adapter = wide(tmp_path, "IQ4_XS")
    with pytest.raises(FileError) as error:
        package.merge(base, [(adapter, 1.0)])
    words = ("blk.0.attn_q.weight", "and 13 more are IQ4_XS", "--type", "Q4_K_M")
    assert all(word in str(error.value) for word in words), error.value
    head = Adapter("llama", 4, 4.0, {"output.weight": adapter.tensors["output.weight"]})
    with pytest.raises(FileError, match=r"output.weight is IQ4_XS"):
        package.merge(base, [(head, 1.0)])
    made = package.merge(base, [(adapter, 1.0)], type="Q8_0")
    assert made.types == {"Q8_0": 58, "F32": 17}
    assert any("what that lost stays lost" in note for note in made.notes)
    with pytest.raises(OptionError, match="'IQ4_XS' is not one of"):
        package.merge(base, [(adapter, 1.0)], type="iq4_xs")


def test_what_cannot_be_held(tmp_path: Path) -> None:
    base = tiny("llama", "F16").gguf
    pairs = {"blk.1.ffn_up.weight": (np.ones((1, 60), "f4"), np.full((100, 1), 1e6, "f4"))}
    with pytest.raises(FileError, match=r"blk.1.ffn_up.weight, rows 0 to 99: 1e\+06; F16 cannot"):
        package.merge(base, [(Adapter("llama", 1, 1.0, pairs), 1.0)])


@pytest.mark.gpu
@pytest.mark.oracle
def test_llama_cpp(tmp_path: Path) -> None:
    """Merged and side by side give the same logits there."""
    from llama_cpp_oracle import LlamaCpp

    base, adapter = tiny("llama").gguf, adapter_for("llama", 4, 1)
    made = package.merge(base, [(adapter, -0.5)])
    judge = LlamaCpp(base)
    tokens = np.array(TOKENS)
    stacked = judge.logits(tokens, judge.adapter(write_adapter_gguf(adapter)), -0.5)
    assert made.data is not None
    merged = LlamaCpp(made.data).logits(tokens)
    assert apart(stacked, merged) < 1e-5 and apart(stacked, judge.logits(tokens)) > 1e-2
    assert apart(logits(made.data), merged) < 1e-5


def test_parts(tmp_path: Path) -> None:
    """A base in several files becomes one."""
    base, adapter = tiny("llama", "Q8_0").gguf, adapter_for("llama", 4, 1, kind="Q8_0")
    for number, data in enumerate(parted.split(base), 1):
        (tmp_path / f"base-0000{number}-of-0000{parted.COUNT}.gguf").write_bytes(data)
    first = tmp_path / f"base-00001-of-0000{parted.COUNT}.gguf"
    made, whole = (package.merge(source, [(adapter, 1.0)]).data for source in (first, base))
    assert made is not None and whole is not None
    assert "split.count" not in parse_gguf(made).metadata
    for name in parse_gguf(whole).tensors:
        assert raw(made, name) == raw(whole, name)
    with pytest.raises(FileError, match="the output is also the input"):
        package.merge(
            first, [(adapter, 1.0)], first.with_name("base-00003-of-00004.gguf"), None, True
        )


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "granite4", "gemma3-whole"])
def test_folder_beside_peft(name: str, tmp_path: Path) -> None:
    """The files hold what PEFT's `merge_and_unload` makes of the model, all else as it was; the
    folder loads in transformers, with logits of base and adapter.
    """
    torch, peft = needs.package("torch"), needs.package("peft")
    model = hf_models.save(name, tmp_path / "base", max_shard_size="60KB")
    (tmp_path / "base" / "special.txt").write_text("kept")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"left")
    modules = [key for key, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    text = [key for key in modules if "vision" not in key and "multi_modal" not in key]
    tied = model.config.get_text_config().tie_word_embeddings
    chosen = [key for key in text if key != "lm_head" or not tied]
    config = peft.LoraConfig(r=3, lora_alpha=4.5, target_modules=chosen, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    for key, parameter in tuned.named_parameters():
        if ".lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()}
    with torch.no_grad():
        wanted = tuned.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    made = package.merge(tmp_path / "base", [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    assert made.exact and made.notes == ["not copied: pytorch_model.bin"]
    tuned.merge_and_unload().save_pretrained(tmp_path / "theirs", max_shard_size="1GB")
    expected = read_safetensors((tmp_path / "theirs" / "model.safetensors").read_bytes())
    shards = sorted(name for name in before if name.endswith(".safetensors"))
    assert len(shards) > 2
    changed = 0
    for shard in shards:
        merged = read_safetensors((tmp_path / "merged" / shard).read_bytes())
        assert list(merged) == list(read_safetensors(before[shard]))
        for key, values in merged.items():
            theirs = expected[key]
            assert np.abs(values - theirs).max() <= 1e-6 * np.abs(theirs).max(), key
            changed += not np.array_equal(values, read_safetensors(before[shard])[key])
    assert changed == len(chosen)
    for file in before.keys() - {*shards, "pytorch_model.bin"}:
        assert (tmp_path / "merged" / file).read_bytes() == before[file]
    loaded = type(model).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        found = loaded(torch.tensor([TOKENS])).logits[0].numpy()
    assert apart(wanted, found) < 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base folder with a tokenizer."""
    path = folders.by_hand(tmp_path / "base", "llama-tied")
    folders.add_tokenizer(path)
    return path


@pytest.mark.gpu
def test_folder_to_gguf(folder: Path, tmp_path: Path) -> None:
    """What converting and then merging makes, also quantised."""
    from wgtrain.cli.convert import convert_folder

    adapter = adapter_for("llama-tied", 4, 1)
    convert_folder(folder, tmp_path / "base.gguf", None, False, lambda line: None)
    for kind in (None, "F16", "Q4_K_M"):
        ours = package.merge(folder, [(adapter, 1.0)], type=kind).data
        theirs = package.merge(tmp_path / "base.gguf", [(adapter, 1.0)], type=kind).data
        assert ours is not None and theirs is not None
        for name, info in parse_gguf(theirs).tensors.items():
            assert parse_gguf(ours).tensors[name].type == info.type
            assert raw(ours, name) == raw(theirs, name)
        assert parse_gguf(ours).metadata.keys() == parse_gguf(theirs).metadata.keys()
    stacked = logits(folder, [(adapter, 1.0)])
    made = package.merge(folder, [(adapter, 1.0)]).data
    assert apart(stacked, logits(made)) < 1e-5 < 1e-2 < apart(stacked, logits(folder))


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "bound"), [("f16", 2e-3), ("bf16", 2e-2), ("f32", 1e-5)])
def test_types_of_folders(kind: str, bound: float, folder: Path, tmp_path: Path) -> None:
    """Numbers are rounded, and the configuration says so."""
    adapter, out = adapter_for("llama-tied", 4, 1), tmp_path / "merged"
    made = package.merge(folder, [(adapter, 1.0)], out, kind)
    assert made.exact == (kind == "f32") and set(made.types) == {kind.upper()}
    assert apart(logits(folder, [(adapter, 1.0)]), logits(out)) < bound
    before, after = (json.loads((p / "config.json").read_text()) for p in (folder, out))
    names = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
    assert after == before | {"torch_dtype": names[kind]}
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(OptionError, match=r"'Q8_0' is not one of F32, F16, BF16.*FILE.gguf"):
        package.merge(folder, [(adapter, 1.0)], tmp_path / "other", "q8_0")


def test_shards_keep_their_index(tmp_path: Path) -> None:
    """Its sizes follow the type."""
    weights = tiny("llama-tied").weights
    half = len(weights) // 2
    base = folders.write(tmp_path / "base", folders.config(tiny("llama-tied").spec), {})
    (base / "model.safetensors").unlink()
    names = list(weights)
    shards = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
    for file, keys in shards.items():
        (base / file).write_bytes(write_safetensors({key: weights[key] for key in keys}, {}))
    placed = {key: file for file, keys in shards.items() for key in keys}
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total, "x": 1}, "weight_map": placed}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for kind, size in ((None, total), ("bf16", total // 2)):
        out = tmp_path / f"merged-{kind}"
        package.merge(base, [(adapter_for("llama-tied", 4, 1), 1.0)], out, kind)
        found = json.loads((out / "model.safetensors.index.json").read_text())
        assert found == index | {"metadata": {"total_size": size, "x": 1}}
    (base / "model.safetensors").write_bytes(write_safetensors(weights, {}))  # then that counts
    for kind in (None, "bf16"):
        out = tmp_path / f"whole-{kind}"
        package.merge(base, [(adapter_for("llama-tied", 4, 1), 1.0)], out, kind)
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = tiny("llama").gguf
    path = tmp_path / "other.gguf"
    path.write_bytes(write_adapter_gguf(adapter_for("qwen2", 4, 1)))
    with pytest.raises(FileError, match=r"other.gguf does not fit the model.*\n.*made for 'qwen2'"):
        package.merge(base, [(path, 1.0)])
    good = adapter_for("llama", 4, 1)
    for wrong, words in (
        ([], "one or more"),
        (path, "one or more"),
        ([(good, float("nan"))], "is needed"),
        ([(good, 1e7)], "beyond 1e"),
    ):
        with pytest.raises(OptionError, match=words):
            package.merge(base, wrong)
    tied = tiny("qwen2")
    a, b = np.ones((1, tied.spec.dim), "f4"), np.ones((tied.spec.vocab, 1), "f4")
    head = Adapter("qwen2", 1, 1.0, {"output.weight": (a, b)})
    with pytest.raises(FileError, match="head is tied to its embedding"):
        package.merge(tied.gguf, [(head, 1.0)])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base, of Q8_0, and two adapters."""
    (tmp_path / "base.gguf").write_bytes(tiny("qwen2", "Q8_0").gguf)
    for seed in (1, 2):
        adapter = adapter_for("qwen2", 4, seed, kind="Q8_0")
        (tmp_path / f"a{seed}.gguf").write_bytes(write_adapter_gguf(adapter))
    return tmp_path


def test_what_stays(files: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written over by mistake, nothing is left where something went wrong."""
    base, a, out = files / "base.gguf", files / "a1.gguf", files / "out.gguf"
    (files / "there.gguf").write_bytes(b"mine")
    (files / "full").mkdir()
    (files / "full" / "x").write_text("mine")
    before = {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    for arguments, words in (
        ([base, "--adapter", a, "--out", base, "--force"], "the output is also the input"),
        ([base, "--adapter", a, "--out", a, "--force"], "the output is also the input"),
        ([base, "--adapter", a, "--out", files / "there.gguf"], "exists already; --force"),
        ([base, "--adapter", a, "--out", files / "no" / "x.gguf"], "there is no folder"),
        ([base, "--adapter", a, "--out", files / "new"], "is made of a folder only"),
        ([folder, "--adapter", a, "--out", files / "full"], "exists already, and a folder"),
        ([folder, "--adapter", a, "--out", files / "new", "--force"], "--force: a folder is never"),
        ([folder, "--adapter", a, "--out", files / "there.gguf" / "x"], "there is no folder"),
        ([base, "--adapter", a, "--out", out, "--type", "Q3_K"], "--type: 'Q3_K' is not one of"),
        ([base, "--out", out], "--adapter: needed"),
        ([base, "--adapter", files / "no.gguf", "--out", out], "no.gguf: No such file"),
        ([base, "--adapter", f"{a}:x", "--out", out], "PATH:SCALE"),
        ([base, "--adapter", a, "--adapter", f"{a}:2", "--out", out], "is named twice"),
        ([base, "--adapter", f"{a}:1e9", "--out", out], "a1.gguf: strength 1e+09"),
        ([base, "--adapter", a, "--out", out, "--quantize-base", "nf4"], "is quantised already"),
        ([base, "--adapter", a, "--out", out, "--no-check", "--data", a], "--no-check reads no"),
        ([base, "--adapter", a, "--out", out, "--kind", "text"], "--kind: only with --data"),
        ([base, "--adapter", a, "--out", out, "--data", files / "no"], "no: No such file"),
        ([base, "--adapter", a, "--out", files / "new", "--modelfile"], "--modelfile: "),
    ):
        code, said = wgtrain(capsys, "--model", *arguments)
        assert (code, words in said) == (2, True), said
    assert {p: p.read_bytes() for p in files.rglob("*") if p.is_file()} == before


def test_nothing_is_left_of_a_folder(folder: Path, tmp_path: Path) -> None:
    """Where a value cannot be held, in the middle of it."""
    rows = np.full((76, 1), 1e6, "f4")
    pairs = {"blk.2.ffn_up.weight": (np.ones((1, 48), "f4"), rows)}
    with pytest.raises(FileError, match=r"model.layers.2.mlp.up_proj.weight, rows .*F16 cannot"):
        package.merge(folder, [(Adapter("llama", 1, 1.0, pairs), 1.0)], tmp_path / "new", "f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize("how", ["new", "empty", "here", "link"])
def test_a_folder_that_is_empty_is_filled(
    how: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one where somebody stands. What is no file is named, since it is not copied."""
    out = tmp_path / "out"
    if how != "new":
        out.mkdir()
    (tmp_path / "link").symlink_to(out)
    named = {"here": Path(), "link": tmp_path / "link"}.get(how, out)
    if how == "here":
        monkeypatch.chdir(out)
    (folder / "sub").mkdir()
    (folder / "sub" / "x.txt").write_text("x")
    (folder / "gone.txt").symlink_to("nowhere")
    adapter = adapter_for("llama-tied", 4, 1)
    made = package.merge(folder, [(adapter, 1.0)], named)
    assert made.notes == ["not copied: gone.txt, sub"]
    names = {p.name for p in folder.iterdir()} - {"sub", "gone.txt"}
    assert {p.name for p in out.iterdir()} == names
    assert made.nbytes == sum(p.stat().st_size for p in out.iterdir())


def test_nothing_is_left_of_a_folder_that_was_empty(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()

    def full(self: Path, target: Path) -> Path:
        if self.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(FileError, match=r"out: No space left on device"):
        package.merge(folder, [(adapter_for("llama-tied", 4, 1), 1.0)], out)
    assert list(out.iterdir()) == []


def test_an_adapter_s_name_that_is_no_utf_8_is_escaped(files: Path) -> None:
    path = files / os.fsdecode(b"\xff.gguf")
    (files / "a1.gguf").rename(path)
    made = package.merge(files / "base.gguf", [(path, 1.0)]).data
    assert made is not None
    assert r"wgtrain: \udcff.gguf (" in parse_gguf(made).metadata["general.description"]


@pytest.mark.gpu
def test_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it wrote and what that changed, which is what `model.logits` says."""
    base, out = files / "base.gguf", files / "out.gguf"
    stack = ["--adapter", files / "a1.gguf", "--adapter", f"{files / 'a2.gguf'}:0.5"]
    found = {}
    for kind in ("Q8_0", "Q4_0", "F32"):
        code, said = wgtrain(
            capsys, "--model", base, *stack, "--out", out, "--type", kind, "--force"
        )
        assert code == 0 and f"{out}: qwen2 with 2 adapters" in said and "Modelfile" in said
        found[kind] = re.search(r"at most (\S+) of their range, (\S+) on average", said)
        assert ("comparing it with base and adapters on a few texts\n" in said) == (kind != "F32")
        assert ("perplexity" in said) == (found[kind] is not None) == (kind != "F32"), said
        assert ("nothing was rounded to less than float32" in said) == (kind == "F32")
    described = parse_gguf(out.read_bytes()).metadata["general.description"]
    assert "a1.gguf (scale 1, rank 4, alpha 6), a2.gguf (scale 0.5, rank 4" in described
    pairs = [(files / "a1.gguf", 1.0), (files / "a2.gguf", 0.5)]
    assert apart(logits(base, pairs), logits(out)) < 1e-5
    coarse, fine = ([float(x) for x in found[kind].groups()] for kind in ("Q4_0", "Q8_0"))
    assert coarse[0] > 3 * fine[0] > 0 and coarse[1] > 3 * fine[1] > 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("option", "why"), [(("--gpu-memory", "1"), "the budget is 1"), (("--adapter-index", 99), "99")]
)
def test_the_gpu_that_compares(
    option: tuple[Any, ...], why: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it cannot, the file is there, and a line says why nothing was measured."""
    out = files / "out.gguf"
    given = ["--model", files / "base.gguf", "--adapter", files / "a1.gguf", "--out", out]
    code, said = wgtrain(capsys, *given, "--no-modelfile", *option)
    assert code == 0 and out.exists()
    assert "warning: what merging changed was not measured: " in said and why in said, said


@pytest.mark.gpu
def test_the_effect_is_what_logits_say(files: Path) -> None:
    base, adapter = files / "base.gguf", files / "a1.gguf"
    made = package.merge(base, [(adapter, 1.0)], files / "out.gguf", "Q4_0")
    data = b"".join(b'{"text": "%s"}\n' % text for text in (b"hello hold", b"the lord told her"))
    with package.load_model(base) as model:
        scaled = read_adapters([(adapter, 1.0)], model.gguf)
        loaded = package.load_dataset(data, model)
        long = package.load_dataset(b'{"text": "%s"}' % (b"hold " * 600), model)
        rows = loaded.rows
        before = [model.logits(row.tokens, [(adapter, 1.0)]) for row in rows]
    assert made.out is not None
    found = effect(base, scaled, made.out, loaded)
    with package.load_model(made.out) as model:
        after = [model.logits(row.tokens) for row in rows]
    perplexities = []
    for side in (before, after):
        losses = []
        for row, values in zip(rows, side, strict=True):
            wide = values.astype(np.float64)[row.targets >= 0]
            right = wide[np.arange(len(wide)), row.targets[row.targets >= 0]]
            losses.append(np.log(np.exp(wide).sum(1)) - right)
        perplexities.append(float(np.exp(np.concatenate(losses).mean())))
    assert [found.before, found.after] == pytest.approx(perplexities, rel=1e-5)
    one, two = np.concatenate(before), np.concatenate(after)
    assert found.largest == pytest.approx(apart(one, two), rel=1e-4)
    assert found.mean == pytest.approx(np.abs(one - two).mean() / np.ptp(one), rel=1e-4)
    assert found.positions == len(one) and found.tokens == sum(len(row.tokens) - 1 for row in rows)
    assert found.notes == ()
    assert effect(base, scaled, made.out, long).notes == ("data: 1 cut at 512 tokens",)


def test_a_configuration(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Adapters that cannot be used are left out and named, unless none is left."""
    file, out = files / "c.json", files / "out.gguf"

    def write(*named: str) -> None:
        listed = [{"path": str(files / name), "scale": 0.5} for name in named]
        model = {"path": str(files / "base.gguf")}
        file.write_text(json.dumps({"model": model, "lora_adapters": listed}))

    write("no.gguf", "a1.gguf")
    code, said = wgtrain(capsys, "--config", file, "--out", out, "--no-check")
    assert code == 0 and "warning: the adapter" in said and "no.gguf is skipped" in said
    expected = package.merge(files / "base.gguf", [(files / "a1.gguf", 0.5)]).data
    assert out.read_bytes() == expected
    write("no.gguf")
    code, said = wgtrain(capsys, "--config", file, "--out", files / "x.gguf")
    assert code == 2 and "no adapter in it can be used; there is nothing to merge" in said


@pytest.mark.gpu
def test_a_base_quantised_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged are the full-precision weights; what is compared with is what was trained on."""
    base, adapter = wide(tmp_path, "F32")
    (tmp_path / "a.gguf").write_bytes(write_adapter_gguf(adapter))
    out = tmp_path / "out.gguf"
    arguments = ["--model", base, "--adapter", tmp_path / "a.gguf", "--out", out, "--force"]
    arguments += ["--data", tmp_path / "rows.jsonl"]
    row = {"text": "hello world", "prompt": "hello", "completion": " world"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, said = wgtrain(capsys, *arguments)
    assert code == 2 and "choose with --kind text or --kind prompt" in said
    assert not out.exists()  # rows are read first
    counts = {}
    for kind in ("text", "prompt"):
        code, said = wgtrain(capsys, *arguments, "--kind", kind)
        counts[kind] = re.findall(r"\((\S+) tokens\)", said)
    assert code == 0 and counts["text"] != counts["prompt"]
    arguments += ["--kind", "text"]
    lines = {}
    for option in ((), ("--quantize-base", "nf4")):
        code, said = wgtrain(capsys, *arguments, *option)
        assert code == 0 and ("full-precision weights" in said) == bool(option), said
        assert out.read_bytes() == package.merge(base, [(tmp_path / "a.gguf", 1.0)]).data
        found = re.search(r"at most (\S+) of their range", said)
        assert found is not None
        lines[option] = float(found[1])
    assert lines[()] < 1e-5 and lines[("--quantize-base", "nf4")] > 1e-3


def test_a_chat_template_goes_along(files: Path, tmp_path: Path, folder: Path) -> None:
    adapters = [(files / "a1.gguf", 1.0)]
    made = package.merge(files / "base.gguf", adapters, chat_template="chatml").data
    assert made is not None
    text = parse_gguf(made).metadata["tokenizer.chat_template"]
    assert "<|im_start|>" in text
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}")
    adapter = adapter_for("llama-tied", 4, 1)
    package.merge(folder, [(adapter, 1.0)], tmp_path / "merged", chat_template=own)
    assert (tmp_path / "merged" / "chat_template.jinja").read_bytes() == own.read_bytes()


@pytest.mark.gpu
def test_a_run_knows_its_base(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how its rows were read, and the chat template that they went through."""
    monkeypatch.chdir(files)
    run = files / "run"
    run.mkdir()
    (files / "a1.gguf").rename(run / "adapter.gguf")
    settings = "model: base.gguf\ndata: rows.jsonl\n"
    (run / "config.yaml").write_text(f"{settings}seq_len: 7\n")
    (files / "test.jsonl").write_text(json.dumps({"text": "hello hold the lord"}) + "\n")
    code, said = wgtrain(capsys, "--adapter", run, "--out", files / "x.gguf", "--data", files)
    assert code == 0 and f"rows are read as for {run}: --seq-len 7" in said, said
    assert "(6 tokens)" in said
    (run / "config.yaml").write_text(f"{settings}chat_template: chatml\n")
    given = ("--adapter", run, "--out", files / "y.gguf", "--data", files)
    code, said = wgtrain(capsys, *given)  # plain rows, which need no template
    assert code == 0 and "tokens)" in said, said
    code, said = wgtrain(capsys, *given, "--force", "--chat-template", "chatml")
    assert code == 2 and "--chat-template 'chatml': " in said and "has no conversations" in said
    (files / "Modelfile").unlink()
    out = files / "merged.gguf"
    code, said = wgtrain(capsys, "--adapter", f"{run}:0.5", "--out", out, "--no-check")
    assert code == 0 and "using base.gguf" in said, said
    expected = package.merge("base.gguf", [(run, 0.5)], chat_template="chatml")
    assert out.read_bytes() == expected.data
    assert "<|im_start|>" in (files / "Modelfile").read_text()


def test_slices_of_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is read in slices of odd numbers of rows is what it is at once."""
    base, adapter = tiny("llama", "Q8_0").gguf, adapter_for("llama", 4, 1, kind="Q8_0")
    whole = package.merge(base, [(adapter, 1.0)]).data
    monkeypatch.setattr("wgtrain.model.quantise_file._VALUES", 3 * 96 + 5)
    assert package.merge(base, [(adapter, 1.0)]).data == whole
