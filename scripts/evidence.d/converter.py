"""`wgtrain convert` beside llama.cpp's own converter: metadata and tensors of every model type,
and whole files with real vocabularies.

The converter is among llama.cpp's sources. `sentencepiece`, where it is installed, makes it read
tokenizer.model.
"""

import importlib
import json
import logging
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from _sources import llama_cpp_sources

from wgtrain import gpu
from wgtrain.data.tokenizer_json import tokenizer_json
from wgtrain.files import BytesSource, parse_gguf
from wgtrain.files.gguf_writer import gguf_chunks
from wgtrain.files.huggingface import open_folder_model
from wgtrain.files.source import read_range
from wgtrain.model.convert import plan_conversion

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
# Keys that this program adds, since transformers reads them and llama.cpp does not; and what the
# converter guesses from the folder's name.
OURS = ("attention.sliding_window", "wgtrain.")
GUESSED = "general."
WHOLE = (
    *(("starcoder2", "gpt-2"), ("llama", "llama-bpe"), ("qwen2", "qwen2")),
    *((kind, "llama-spm") for kind in ("llama", "gemma", "gemma2", "gemma3", "phi3")),
)


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where anything differs that is not listed here."""
    import hf_models

    converter = load_converter(folder)
    figures["models"], figures["differences"] = 0, {}
    for name in hf_models.MODELS:
        path = folder / name
        hf_models.save(name, path)
        if name == "granite4":  # whose converter knows layers by their older names alone
            settings = hf_models.as_on_the_hub(hf_models.read(path))
            (path / "config.json").write_text(json.dumps(settings))
        size = hf_models.hf_config(name).get_text_config().vocab_size
        if name.startswith("gemma3"):  # whose converter counts the pieces
            pieces = {f"p{i}": i for i in range(size)}
            spec = {"model": {"vocab": pieces}, "added_tokens": []}
            (path / "tokenizer.json").write_text(json.dumps(spec))
        theirs, weights, problem = converter.parts(path)
        files = {file.name: BytesSource(file.read_bytes(), file.name) for file in path.iterdir()}
        model = gpu.run(open_folder_model(files, str(path)))
        ours = model.translation.metadata
        wrong = {
            key: [plain(ours.get(key)), plain(theirs.get(key))]
            for key in {*ours, *theirs}
            if plain(ours.get(key)) != plain(theirs.get(key))
        }
        expected = {key for key in wrong if key not in theirs and any(o in key for o in OURS)}
        assert wrong.keys() <= expected, (name, wrong)
        if problem:
            figures["differences"][name] = problem
        else:
            assert weights.keys() == model.gguf.tensors.keys(), name
            for tensor, array in weights.items():
                info = model.gguf.tensors[tensor]
                data = gpu.run(read_range(model.source, info.offset, info.nbytes))
                assert info.shape == array.shape and bytes(data) == array.tobytes(), (name, tensor)
        figures["models"] += 1
    figures["vocabularies"] = {}
    for kind, vocabulary in WHOLE:
        found = whole_file(converter, folder / f"{kind} {vocabulary}", kind, vocabulary)
        figures["vocabularies"][f"{kind}, {vocabulary}"] = found


def whole_file(converter: Any, path: Path, kind: str, vocabulary: str) -> str:
    """Both files of a tiny model with a real vocabulary, in F16."""
    import hf_models
    import vocabs
    from test_convert import sentencepiece

    from wgtrain.files import GGUF

    held = vocabs.metadata(vocabulary)
    rows = len(held["tokenizer.ggml.tokens"]) + 3
    name, given = hf_models.MODELS[kind]
    given = given | {"vocab_size": rows, "num_hidden_layers": 1}
    if not kind.startswith("gemma"):
        given |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    given |= {"sliding_window": None} if kind == "starcoder2" else {}
    hf_models.MODELS["whole"] = name, given | {"bos_token_id": 1, "eos_token_id": 2}
    hf_models.save("whole", path)
    if vocabulary == "llama-spm":
        if util.find_spec("sentencepiece") is None:
            return "left out: sentencepiece is not installed"
        gguf = GGUF("x", 3, held, {})
        (path / "tokenizer.model").write_bytes(sentencepiece(gguf))
        added = {"5": {"content": "\u2581<think>", "special": False}}
        settings: dict[str, Any] = {"added_tokens_decoder": added, "add_prefix_space": True}
        settings["tokenizer_class"] = "LlamaTokenizer"
    else:
        spec = json.loads(tokenizer_json(held))
        control = [i for i, t in enumerate(held["tokenizer.ggml.token_type"].tolist()) if t == 3]
        pieces = held["tokenizer.ggml.tokens"]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        spec["added_tokens"] = [
            {"id": i, "content": pieces[i], "special": i % 2 == 0, **flags} for i in control
        ]
        end = pieces[control[0]]
        settings = {
            "eos_token": end,
            "pad_token": end,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if vocabulary == "llama-bpe":
            text = {"SpecialToken": {"id": end, "type_id": 0}}
            spec["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [text, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    *(text, {"Sequence": {"id": "A", "type_id": 0}}),
                    *(text, {"Sequence": {"id": "B", "type_id": 1}}),
                ],
                "special_tokens": {end: {"id": end, "ids": [control[0]], "tokens": [end]}},
            }
            settings["bos_token"] = end
        (path / "tokenizer.json").write_text(json.dumps(spec))
    settings["chat_template"] = "{{ messages }}"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = converter.write(path)
    files = {file.name: BytesSource(file.read_bytes(), file.name) for file in path.iterdir()}
    made = gpu.run(plan_conversion(files, str(path), "f16"))

    async def joined() -> bytes:
        return b"".join([bytes(c) async for c in gguf_chunks(made.metadata, made.tensors)])

    data = gpu.run(joined())
    ours, judge = parse_gguf(data), parse_gguf(theirs)
    keys = [key for key in {*ours.metadata, *judge.metadata} if not key.startswith(GUESSED)]
    keys += ["general.architecture", "general.type", "general.file_type"]
    keys += ["general.quantization_version"]
    wrong = [key for key in keys if plain(ours.metadata.get(key)) != plain(judge.metadata.get(key))]
    assert not wrong, (vocabulary, {k: cut(ours, judge, k) for k in wrong})
    assert ours.tensors.keys() == judge.tensors.keys()
    for name, a in ours.tensors.items():
        b = judge.tensors[name]
        assert (a.type, a.shape) == (b.type, b.shape), name
        assert data[a.offset : a.offset + a.nbytes] == theirs[b.offset : b.offset + b.nbytes], name
    return f"{len(keys)} keys and {len(ours.tensors)} tensors equal, {len(data)} bytes"


def cut(ours: Any, judge: Any, key: str) -> tuple[str, str]:
    a, b = plain(ours.metadata.get(key)), plain(judge.metadata.get(key))
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        where = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
        a, b = [where, a[where]], [where, b[where]]
    return str(a)[:200], str(b)[:200]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return float(np.float32(value)) if isinstance(value, float) else value


def load_converter(folder: Path) -> Any:
    """llama.cpp's converter, of its source."""
    source = str(llama_cpp_sources(folder))
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]  # it needs the package as of its day
    logging.disable(logging.WARNING)
    conversion = importlib.import_module("conversion")
    conversion.load_all_models()
    return Converter(conversion, importlib.import_module("conversion.base"))


class Converter:
    """What is asked of it."""

    def __init__(self, conversion: Any, base: Any) -> None:
        self.conversion, self.base = conversion, base

    def made(self, path: Path, kind: str) -> Any:
        import gguf

        config = self.base.ModelBase.load_hparams(path, False)
        name = self.base.get_model_architecture(config, self.base.ModelType.TEXT)
        cls = self.conversion.get_model_class(name)
        out = path / "converted.gguf"
        return cls(path, getattr(gguf.LlamaFileType, kind), out, eager=True)

    def parts(self, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
        """Metadata below the architecture's name and tensors, without a tokenizer."""
        made = self.made(path, "ALL_F32")
        made = getattr(made, "impl", made)
        problem = ""
        try:
            made.prepare_tensors()
        except ValueError as error:
            problem = str(error)[:80]
        made.set_gguf_parameters()
        writer = made.gguf_writer
        values = {key: value.value for key, value in writer.kv_data[0].items()}
        below = values["general.architecture"] + "."
        tensors = {name: np.asarray(info.tensor) for name, info in writer.tensors[0].items()}
        return {k: v for k, v in values.items() if k.startswith(below)}, tensors, problem

    def write(self, path: Path) -> bytes:
        """The whole file, in F16."""
        made = self.made(path, "MOSTLY_F16")
        made.write()
        file: Path = made.fname_out
        data = file.read_bytes()
        file.unlink()
        return data
