"""Makes the files of `wgtrain demo`: the base model and the fine-tuning set in wgtrain/demo_files.

    python scripts/make_demo.py           both; trains the base, a quarter of an hour on two cores
    python scripts/make_demo.py --data    the fine-tuning set alone, byte for byte the committed one

Needs torch, tokenizers and gguf (for the Q8_0 rounding). The data set depends on SEED alone; the
base's weights also on the version of torch and the number of threads. `scripts/check_demo.py` tells
whether a base is good enough.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import demo_data

SEED = 1
FILES = Path(__file__).parent.parent / "wgtrain" / "demo_files"


def metadata(shape: Any, tokenizer_json: str) -> dict[str, Any]:
    """Everything of base.gguf but the tensors; `shape` is a demo_model.Shape."""
    import demo_base
    import numpy as np

    bpe = json.loads(tokenizer_json)["model"]
    pieces = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    control = set(demo_base.SPECIAL)
    u32, f32 = np.uint32, np.float32
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "wgtrain demo",
        "general.author": "wgtrain",
        "general.license": "mit",
        "general.description": "Small talk about little sentences; made by scripts/make_demo.py.",
        "general.languages": ["en"],
        "general.size_label": "1.8M",
        "general.file_type": u32(7),
        "general.quantization_version": u32(2),
        "llama.vocab_size": u32(shape.vocab),
        "llama.context_length": u32(shape.context),
        "llama.embedding_length": u32(shape.width),
        "llama.block_count": u32(shape.layers),
        "llama.feed_forward_length": u32(shape.feed_forward),
        "llama.attention.head_count": u32(shape.heads),
        "llama.attention.head_count_kv": u32(shape.heads_kv),
        "llama.attention.layer_norm_rms_epsilon": f32(shape.eps),
        "llama.rope.dimension_count": u32(shape.head_size),
        "llama.rope.freq_base": f32(shape.rope_theta),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": np.array([3 if p in control else 1 for p in pieces], np.int32),
        "tokenizer.ggml.merges": [" ".join(m) for m in bpe["merges"]],
        "tokenizer.ggml.bos_token_id": u32(demo_base.END_OF_TEXT),
        "tokenizer.ggml.eos_token_id": u32(demo_base.END_OF_TURN),
        "tokenizer.ggml.eot_token_id": u32(demo_base.END_OF_TURN),
        "tokenizer.ggml.padding_token_id": u32(demo_base.END_OF_TEXT),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": demo_base.TEMPLATE,
    }


def base_gguf(model: Any, tokenizer_json: str) -> bytes:
    """The model as a GGUF file: matrices Q8_0, norms F32."""
    import gguf
    import numpy as np

    from wgtrain.files.gguf import Raw, write_gguf

    tensors: dict[str, Any] = {}
    for name, parameter in model.state_dict().items():
        values = parameter.numpy().astype(np.float32)
        if values.ndim == 2:
            blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            tensors[name] = Raw("Q8_0", values.shape, blocks.tobytes())
        else:
            tensors[name] = values
    return write_gguf(metadata(model.shape, tokenizer_json), tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the files of the demo.")
    parser.add_argument("--data", action="store_true", help="only the fine-tuning set")
    parser.add_argument("--out", type=Path, default=FILES, help="folder to write into")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of the base")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, data in demo_data.files(SEED).items():
        (options.out / name).write_bytes(data)
    if options.data:
        return

    import demo_base
    import torch
    from demo_model import Shape

    torch.set_num_threads(options.threads)
    tokenizer = demo_base.train_tokenizer(demo_base.exchanges(SEED, "vocabulary", 20_000), 1024)
    shape = Shape(tokenizer.get_vocab_size())
    model, loss = demo_base.train(
        tokenizer, shape, SEED, steps=options.steps, batch=64, learning_rate=3e-3
    )
    data = base_gguf(model, tokenizer.to_str())
    (options.out / "base.gguf").write_bytes(data)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(data)} bytes, held-out loss {loss:.4f}")


if __name__ == "__main__":
    main()
