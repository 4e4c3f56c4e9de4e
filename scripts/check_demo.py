"""Is the demo's base good enough? Trains the adapter in PyTorch and scores it on held-out prompts.

    python scripts/check_demo.py [--seeds 1 2 3] [--llama]

With --llama, llama.cpp answers the held-out prompts too, and its answers are compared.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import demo_base
import torch
from demo_model import Model, Shape, add_lora, greedy
from make_demo import FILES
from tokenizers import Tokenizer

from wgtrain.cli.demo import MAX_ANSWER, SETTINGS, is_right


def load(path: Path) -> tuple[Model, Tokenizer]:
    """The model and its tokenizer out of base.gguf, weights as Q8_0 rounded them."""
    import gguf

    reader = gguf.GGUFReader(path)
    field = {key: value.contents() for key, value in reader.fields.items()}
    tokens = field["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in field["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = demo_base.byte_level_bpe(vocab, merges, demo_base.QWEN2)
    model = Model(
        Shape(
            len(tokens),
            field["llama.block_count"],
            field["llama.embedding_length"],
            field["llama.attention.head_count"],
            field["llama.attention.head_count_kv"],
            field["llama.feed_forward_length"],
        )
    )
    state = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
        for t in reader.tensors
    }
    model.load_state_dict(state)
    return model, tokenizer


def pairs(path: Path) -> list[tuple[str, str]]:
    """Prompts and answers of a file of {"messages": [user, assistant]} rows."""
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(user["content"], assistant["content"]) for user, assistant in rows]


def answers(model: Model, tokenizer: Tokenizer, prompts: list[str]) -> list[str]:
    ids = [tokenizer.encode(demo_base.prompt_text(p)).ids for p in prompts]
    return tokenizer.decode_batch(greedy(model, ids, MAX_ANSWER, demo_base.END_OF_TURN))


def tune(model: Model, tokenizer: Tokenizer, seed: int) -> list[tuple[int, float]]:
    """Trains an adapter as the demo does; returns held-out losses."""
    torch.manual_seed(seed)
    trained = add_lora(model, SETTINGS["rank"], SETTINGS["alpha"])
    rows = demo_base.encode(tokenizer, pairs(FILES / "train.jsonl"))
    valid = demo_base.encode(tokenizer, pairs(FILES / "valid.jsonl"))
    size = SETTINGS["batch_size"]
    per_epoch = math.ceil(len(rows) / size)
    total = SETTINGS["epochs"] * per_epoch
    warmup = math.ceil(SETTINGS["warmup_ratio"] * total)
    optimizer = torch.optim.AdamW(trained, lr=SETTINGS["learning_rate"], weight_decay=0.0)
    losses, order = [], []
    for step in range(total):
        if step % (per_epoch // 2) == 0:
            losses.append((step, _loss(model, valid)))
        if not order:
            order = torch.randperm(len(rows)).tolist()
        batch, order = [rows[i] for i in order[:size]], order[size:]
        n, p = step + 1, max(step - warmup, 0) / max(total - warmup, 1)
        rate = n / warmup if n <= warmup else (1 + math.cos(math.pi * p)) / 2
        optimizer.param_groups[0]["lr"] = SETTINGS["learning_rate"] * rate
        loss = model.loss(*demo_base.batch_of(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    losses.append((total, _loss(model, valid)))
    return losses


@torch.no_grad()
def _loss(model: Model, rows: list[demo_base.Row]) -> float:
    return model.loss(*demo_base.batch_of(rows)).item()


def llama_answers(path: Path, prompts: list[str]) -> list[str]:
    """What llama.cpp answers, greedily, through the file's own chat template."""
    import llama_cpp

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from llama_cpp_oracle import model_params

    llama_cpp.llama_cpp.llama_model_default_params = model_params
    llama = llama_cpp.Llama(str(path), n_ctx=256, verbose=False, n_threads=2, type_k=0, type_v=0)
    said = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        reply = llama.create_chat_completion(messages, temperature=0.0, max_tokens=MAX_ANSWER)
        said.append(reply["choices"][0]["message"]["content"])
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--base", type=Path, default=FILES / "base.gguf")
    parser.add_argument("--llama", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    test = pairs(FILES / "test.jsonl")
    prompts = [p for p, _ in test]
    model, tokenizer = load(options.base)
    said = answers(model, tokenizer, prompts)
    for prompt, answer in zip(prompts[:10], said, strict=False):
        print(f"{prompt}\n    {answer}")
    right = sum(is_right(a, wanted) for a, (_, wanted) in zip(said, test, strict=True))
    print(f"base {right}/{len(test)}; other exchanges of its world:")
    known = demo_base.exchanges(1, "check", 300)
    given = answers(model, tokenizer, [p for p, _ in known])
    wrong = [(p, a, g) for (p, a), g in zip(known, given, strict=True) if a != g]
    print(f"{len(known) - len(wrong)}/{len(known)} as in training")
    for prompt, answer, got in wrong[:15]:
        print(f"    {prompt}\n        {answer}\n        {got}")
    if options.llama:
        same = sum(a == b for a, b in zip(said, llama_answers(options.base, prompts), strict=True))
        print(f"llama.cpp gives {same}/{len(test)} of the base's answers")
    for seed in options.seeds:
        model, tokenizer = load(options.base)
        start = time.monotonic()
        losses = tune(model, tokenizer, seed)
        seconds = time.monotonic() - start
        said = answers(model, tokenizer, prompts)
        right = sum(is_right(a, wanted) for a, (_, wanted) in zip(said, test, strict=True))
        falling = " ".join(f"{step}:{loss:.3f}" for step, loss in losses)
        print(f"seed {seed}: tuned {right}/{len(test)}, {seconds:.0f} s, held-out loss {falling}")
        for (prompt, wanted), answer in zip(test, said, strict=True):
            if not is_right(answer, wanted):
                print(f"    {prompt}\n        wanted {wanted}\n        got    {answer}")


if __name__ == "__main__":
    main()
