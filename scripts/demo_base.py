"""Tokenizer and training of the demo's base model."""

import json
import time
from collections import Counter

import demo_text as text
import torch
from demo_model import Model, Shape, pad
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN, END_OF_TURN = range(3)
Row = tuple[list[int], list[int]]  # tokens and targets
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The pre-tokenizer that GGUF calls `qwen2`: digits stand alone.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def prompt_text(prompt: str) -> str:
    """What stands before the answer, as the chat template renders it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def exchanges(seed: int, purpose: str, n: int) -> list[tuple[str, str]]:
    """`n` prompts and answers of the base's world."""
    world = text.World(text.Dice(seed, purpose))
    return [text.talk(world) for _ in range(n)]


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], split: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    return tokenizer


def train_tokenizer(corpus: list[tuple[str, str]], size: int) -> Tokenizer:
    """A byte-level BPE in which what is to be copied is spelt alike with and without a space.

    First the words alone are merged; then a space is joined to those whole words that are never
    copied (' bought'), so that 'Mia', ' Mia' and '"Mia"' share the token 'Mia'.
    """
    roles = {"user", "assistant", "system"}
    lines = [line for pair in corpus for line in pair] + sorted(f"{role}\n" for role in roles) * 500
    words = byte_level_bpe({}, [], r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s")
    copied = {*roles, *text.NAMES, *text.PLACES, *text.COLOURS, *text.KNOWN_ITEMS}
    counts: Counter[str] = Counter()
    for line in lines:
        for word, _ in words.pre_tokenizer.pre_tokenize_str(line):
            counts[word] += 1
    spaced = [w for w, n in counts.most_common() if n >= 100 and w not in copied]
    spaced = [w for w in spaced if w == "a" or (len(w) > 1 and w[0].isalpha()) or w in '"{"["']
    words.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=size - len(spaced),
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    model = json.loads(words.to_str())["model"]
    vocab, merges = dict(model["vocab"]), [tuple(m) for m in model["merges"]]
    for word in spaced:
        if word in vocab:
            vocab["Ġ" + word] = len(vocab)
            merges.append(("Ġ", word))
    return byte_level_bpe(vocab, merges, QWEN2)


def encode(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> list[Row]:
    """Token rows and their targets (the next token where it belongs to the answer, else -1)."""
    before = tokenizer.encode_batch([prompt_text(p) for p, _ in pairs])
    after = tokenizer.encode_batch([answer + SPECIAL[END_OF_TURN] for _, answer in pairs])
    rows = []
    for b, answer in zip(before, after, strict=True):
        tokens = b.ids + answer.ids
        rows.append((tokens, [-1] * (len(b.ids) - 1) + answer.ids + [-1]))
    return rows


def batch_of(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Tokens and targets of rows, each (N, S)."""
    return pad([tokens for tokens, _ in rows], 0), pad([targets for _, targets in rows], -1)


def train(
    tokenizer: Tokenizer, shape: Shape, seed: int, *, steps: int, batch: int, learning_rate: float
) -> tuple[Model, float]:
    """The trained base and its loss on exchanges it has not seen."""
    torch.manual_seed(seed)
    model = Model(shape)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    warmup, pool = 100, 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warmup, 0.02 + 0.98 * (1 - max(i - warmup, 0) / (steps - warmup))),
    )
    valid = encode(tokenizer, exchanges(seed, "base valid", 512))
    dice = text.Dice(seed, "base batches")
    start, batches = time.monotonic(), []
    for step in range(steps):
        if not batches:  # rows of like length share a batch, so that little is padding
            said = exchanges(seed, f"base {step}", pool * batch)
            rows = sorted(encode(tokenizer, said), key=lambda row: len(row[0]))
            batches = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        rows = batches.pop(dice.below(len(batches)))
        loss = model.loss(*batch_of(rows))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            with torch.no_grad():
                held = model.loss(*batch_of(valid)).item()
            said = f"loss {loss.item():.3f}  held-out {held:.4f}  {time.monotonic() - start:.0f} s"
            print(f"step {step + 1}/{steps}  {said}", flush=True)
    return model, held
