"""Small models with random weights, as GGUF files and as the same weights for transformers.

A `Tiny` holds what both sides need: the file's bytes, an F32 file of the dequantised weights, and
those weights under Hugging Face names, so that PEFT runs on exactly the numbers in the file. Files
are written by the `gguf` package, with keys, shapes and row orders spelled out here. Names are
those of the table of architectures: a wrong one puts a weight into another place on one side.
"""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp_oracle import quantised
from specs import BLOCK_SPECS, MORE, SPECS, Spec

from wgtrain.files import ARCHITECTURES

LINEARS = dict(ARCHITECTURES["llama"].linears)  # of all that are here
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


@dataclass(frozen=True)
class Tiny:
    """One model: `weights` are dequantised, by Hugging Face names and in its row order."""

    spec: Spec
    type: str
    gguf: bytes = field(repr=False)
    gguf_f32: bytes = field(repr=False)
    weights: dict[str, np.ndarray] = field(repr=False)

    def hf_model(self, dtype: str = "float32") -> Any:
        """A new transformers model with these weights, in eval mode."""
        import torch

        spec = self.spec
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = hf_class(spec)(hf_config(spec))
        state = {name: torch.from_numpy(w.copy()) for name, w in self.weights.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and missing == (["lm_head.weight"] if spec.tied else []), (
            missing,
            unexpected,
        )
        model.tie_weights()
        return model.to(getattr(torch, dtype)).eval()


def hf_class(spec: Spec) -> Any:
    """The transformers class of an architecture."""
    import transformers

    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config(spec))]


def hf_config(spec: Spec) -> Any:
    """The transformers configuration of a shape."""
    import transformers

    further = dict(spec.hf)
    return transformers.AutoConfig.for_model(
        further.pop("model_type", spec.row.model_type),
        vocab_size=spec.vocab,
        hidden_size=spec.dim,
        intermediate_size=spec.ff,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        **{next(key.hf for key in spec.row.keys if key.field == "norm_eps"): spec.eps},
        rope_parameters=rope_parameters(spec),
        tie_word_embeddings=spec.tied,
        max_position_embeddings=spec.context,
        attn_implementation="eager" if spec.architecture == "gemma2" else "sdpa",
        use_cache=False,
        **further,
    )


def rope_parameters(spec: Spec) -> dict[str, Any]:
    """Those of transformers, by kind of layer where a model has two."""
    whole = {"rope_type": "default", "rope_theta": spec.rope_theta, **dict(spec.rope)}
    local = whole.pop("local", None)
    if local is None:
        return whole
    plain = {"rope_type": "default", "rope_theta": local}
    return {"full_attention": whole, "sliding_attention": plain}


def random_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    """Weights float32 by GGUF names, in the file's row order; nothing at its initial value.

    The spread of the logits is about 2.
    """
    rng = np.random.default_rng(seed)

    def matrix(name: str, shape: tuple[int, int], scale: float) -> None:
        weights[f"{name}.weight"] = rng.normal(0, scale / np.sqrt(shape[1]), shape)

    def norm(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = rng.uniform(0.8, 1.2, shape)
        if spec.row.has_bias(name.rpartition(".")[2]):
            weights[f"{name}.bias"] = rng.normal(0, 0.3, shape)

    weights: dict[str, np.ndarray] = {}
    matrix("token_embd", (spec.vocab, spec.dim), 2.0)
    for layer in range(spec.layers):
        block = f"blk.{layer}."
        for name in spec.linears:
            matrix(block + name, spec.linear_shape(name), 1.0)
        for name, shape in spec.norms.items():
            norm(block + name, *shape)
        for name in spec.biases:
            weights[f"{block}{name}.bias"] = rng.normal(0, 0.1, spec.linear_shape(name)[0])
    norm("output_norm", spec.dim)
    for name, factors in spec.factors:
        weights[name] = np.array(factors)
    if not spec.tied:
        matrix("output", (spec.vocab, spec.dim), 2.0)
    return {name: w.astype(np.float32) for name, w in weights.items()}


@functools.cache
def tiny(name: str, type: str = "F32", seed: int = 0) -> Tiny:
    """The model of a name of `SPECS`; its matrices have the GGUF type, norms and biases F32."""
    if type in ("Q8_0", "Q4_0") and name in BLOCK_SPECS:
        spec = BLOCK_SPECS[name]
    else:
        spec = {**SPECS, **MORE}[name].for_type(type)
    kind = gguf.GGMLQuantizationType[type]
    stored: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] = {}
    plain: dict[str, np.ndarray] = {}
    for key, w in random_weights(spec, seed).items():
        if w.ndim == 1 or key.endswith("norm.weight"):
            stored[key], plain[key] = (w, gguf.GGMLQuantizationType.F32), w
        else:
            data = quantised(w, kind) if type.endswith("_K") else gguf.quants.quantize(w, kind)
            stored[key] = (data, kind)
            plain[key] = gguf.quants.dequantize(data, kind).astype(np.float32)
    f32 = {key: (w, gguf.GGMLQuantizationType.F32) for key, w in plain.items()}
    return Tiny(spec, type, write(spec, stored), write(spec, f32), hf_weights(spec, plain))


def hf_weights(spec: Spec, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by GGUF names -> by Hugging Face names, in its row order."""
    out = {}
    apart = {name: part for key, w in weights.items() for name, part in spec.parts(key, w).items()}
    for key, w in apart.items():
        if key in dict(spec.factors):
            continue  # transformers computes them
        ours, kind = key.rsplit(".", 1)
        module = spec.hf_name(ours)
        if kind == "weight" and ours.endswith("norm") and spec.row.norm_plus_one:
            w = w.astype(np.float64) - 1
        if w.ndim == 2 and ours.endswith("norm"):
            out |= {f"{module}.norms.{head}.weight": row for head, row in enumerate(w)}
        else:
            out[f"{module}.{kind}"] = spec.from_file_order(module, w)
    return out


def from_gguf(path: Path) -> Tiny:
    """A `Tiny` over an existing F32 `llama` file, read by the `gguf` package."""
    reader = gguf.GGUFReader(path)

    def get(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    weights = {
        t.name: np.array(t.data, np.float32).reshape(tuple(reversed([int(n) for n in t.shape])))
        for t in reader.tensors
    }
    heads, dim = get("attention.head_count"), get("embedding_length")
    spec = Spec(
        "llama",
        dim,
        heads,
        get("attention.head_count_kv"),
        dim // heads,
        get("feed_forward_length"),
        get("block_count"),
        len(weights["token_embd.weight"]),
        tied="output.weight" not in weights,
        eps=get("attention.layer_norm_rms_epsilon"),
        context=get("context_length"),
    )
    data = path.read_bytes()
    return Tiny(spec, "F32", data, data, hf_weights(spec, weights))


def write(spec: Spec, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]) -> bytes:
    """A GGUF file by the `gguf` package, with what llama.cpp asks for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.gguf")
        out = gguf.GGUFWriter(path, spec.architecture)
        out.add_name("tiny")  # one that says Phi would change how llama.cpp reads the vocabulary
        out.add_context_length(spec.context)
        out.add_embedding_length(spec.dim)
        out.add_block_count(spec.layers)
        out.add_feed_forward_length(spec.ff)
        out.add_head_count(spec.heads)
        out.add_head_count_kv(spec.kv_heads)
        out.add_key_length(spec.head_dim)
        out.add_value_length(spec.head_dim)
        if spec.row.layer_norm:
            out.add_layer_norm_eps(spec.eps)
        else:
            out.add_layer_norm_rms_eps(spec.eps)
        out.add_rope_freq_base(spec.rope_theta)
        if spec.architecture == "llama" or spec.rotary:
            out.add_rope_dimension_count(spec.rotary or spec.head_dim)
            out.add_vocab_size(spec.vocab)
        for key, value in spec.keys:
            _add(out, f"{spec.architecture}.{key}", value)
        (_add_spm if spec.tokenizer == "spm" else _add_bpe)(out, spec.vocab)
        for name, (data, kind) in tensors.items():
            out.add_tensor(name, data, raw_dtype=kind)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return path.read_bytes()


def _add(out: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Any] = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32}
    kinds |= {str: out.add_string, tuple: out.add_array}
    kinds[type(value)](key, value)


def _add_spm(out: gguf.GGUFWriter, vocab: int) -> None:
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    if vocab > 259:
        tokens += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    letters = ["\u2581"] + [chr(c) for c in range(ord("!"), 127)]
    pairs = [a + b for a in "\u2581ehlo" for b in "helord"]
    tokens += [(piece, kind.NORMAL) for piece in letters[: vocab - len(tokens)]]
    tokens += [(piece, kind.NORMAL) for piece in pairs[: vocab - len(tokens)]]
    assert len(tokens) == vocab
    out.add_tokenizer_model("llama")
    out.add_token_list([piece for piece, _ in tokens])
    out.add_token_scores([-float(i) for i in range(vocab)])
    out.add_token_types([int(t) for _, t in tokens])
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)


def _add_bpe(out: gguf.GGUFWriter, vocab: int) -> None:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    tokens = [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]
    merges = [(a, b) for a in "\u0120ehlo" for b in "helordstan"][: vocab - len(tokens) - 2]
    tokens += [a + b for a, b in merges]
    special = ["<|endoftext|>", "<|im_end|>"]
    tokens += special
    assert len(tokens) == vocab
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types(
        [int(gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL) for t in tokens]
    )
    out.add_token_merges([f"{a} {b}" for a, b in merges])
    out.add_bos_token_id(vocab - 2)
    out.add_eos_token_id(vocab - 1)
    out.add_add_bos_token(False)


def random_rows(
    spec: Spec, lengths: list[int], seed: int, ignored: float = 0.25
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of random tokens uint32 (n,) and targets int32 (n,).

    Targets are already shifted; the last of a row and some others are -1.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for n in lengths:
        tokens = rng.integers(0, spec.vocab, n).astype(np.uint32)
        targets = np.append(tokens[1:], 0).astype(np.int32)
        targets[rng.random(n) < ignored] = -1
        targets[-1] = -1
        targets[0] = tokens[1]
        rows.append((tokens, targets))
    return rows


def random_adapter(
    spec: Spec, targets: list[str], rank: int, seed: int, scale: float = 0.3
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random A (r, n_in) and B (n_out, r), float32, by GGUF tensor name, in the file's rows."""
    rng = np.random.default_rng(seed)
    out = {}
    for name in targets:
        n_out, n_in = spec.linear_shape(name)
        a = rng.uniform(-1, 1, (rank, n_in)) / np.sqrt(n_in)
        b = rng.normal(0, scale / np.sqrt(rank), (n_out, rank))
        out[f"{name}.weight"] = (a.astype(np.float32), b.astype(np.float32))
    return out


def targets(
    spec: Spec, names: list[str] | None = None, layers: list[int] | None = None
) -> list[str]:
    """GGUF names without `.weight`: all linears of all blocks, or those named."""
    names = list(LINEARS) if names is None else names
    out = [
        f"blk.{layer}.{name}"
        for layer in (range(spec.layers) if layers is None else layers)
        for name in names
        if name != "output"
    ]
    return out + (["output"] if "output" in names else [])
