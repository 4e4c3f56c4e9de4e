"""A learner in numpy with a toy model, so that the trainer is tested without a GPU, bit by bit.

Each target adds s * C_t B A (mask * E_t[token]) to the logits of the next token; E_t and C_t are
fixed random tables. Gradients are exact, AdamW and the clipping are those of the real learner.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from wgtrain import random
from wgtrain.cli.main import main
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.data.prompts import Prompt
from wgtrain.engine.tuning import DEFAULT_CPU
from wgtrain.files import ARCHITECTURES
from wgtrain.files.names import resolve_targets, tensor_name
from wgtrain.gpu import Limits
from wgtrain.model.host import Host, adapter_from_bytes
from wgtrain.train.fit import Fit
from wgtrain.train.needs import Needs

LINEARS = ARCHITECTURES["qwen2"].linears
VOCAB, WIDTH, LAYERS = 11, 6, 3


class FakeDevice:
    """As much of a device as the trainer asks for: one that has all the memory in the world."""

    limits, allocated, budget = Limits(), 0, None

    def find_budget(self):
        return "not known"


class FakePlan:
    """As much of a plan as a session asks for."""

    problem, needs = "", Needs({"base": 3 << 20}, ("base", 3), 16, 16, False, {})

    def __init__(self, *arguments, **options):
        self.options = options


class FakeModel:
    """As much of a model as the trainer asks for."""

    name, base_name, fingerprint = "fake.gguf", "someone/fake", "f" * 64
    host, device = Host(choose_tuning=lambda *_: DEFAULT_CPU), FakeDevice()
    base = property(lambda self: self)
    weights = SimpleNamespace(nbytes=3 << 20, storages=[])
    config = SimpleNamespace(
        architecture="qwen2",
        n_layer=LAYERS,
        n_head=2,
        n_head_kv=1,
        context=5,
        vocabulary=VOCAB,
        block_linears=LINEARS,
        notes=(),
        layers=(),
    )
    gguf = SimpleNamespace(
        metadata={"general.name": "Fake"},
        tensors={
            tensor_name(module, layer): SimpleNamespace(shape=(WIDTH, WIDTH))
            for layer in range(LAYERS)
            for module in resolve_targets("all-linear,lm_head", LINEARS)
        },
    )

    def clear_cache(self):
        """It keeps nothing."""

    def __init__(
        self,
        path="fake.gguf",
        adapter_index=None,
        precision="f32",
        quantize_base=None,
        gpu_memory=None,
    ):
        self.adapter_index, self.precision = adapter_index, precision
        self.gpu_memory = gpu_memory
        self.quantize_base = quantize_base
        if path != "fake.gguf":
            self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def close(self):
        pass

    @staticmethod
    def read_adapter(adapter):
        return adapter_from_bytes(adapter)

    @staticmethod
    def sample_prompts(texts, rows, valid):
        return fake_prompts(texts, rows, valid, None)

    @staticmethod
    def plan_samples(base, beside, lengths):
        return SimpleNamespace(nbytes=100 * len(lengths), largest=lambda: ("keys", 10))

    @staticmethod
    def answering(beside, prompts):
        return FakeAnswers(beside, prompts)


class FakeAnswers:
    """Answers that tell the base, and what trains at any time, from all others."""

    open_now = 0

    def __init__(self, beside, prompts):
        self.learners, self.prompts = [learner for (learner,) in beside.values()], prompts

    async def open(self):
        FakeAnswers.open_now += 1

    async def answers(self):
        digest = hashlib.sha256()
        for learner in self.learners:
            for name in sorted(learner.p):
                digest.update(learner.p[name].tobytes())
        said = digest.hexdigest()[:8] if self.learners else "base"
        return [f"{said}\n{len(ids)}" for ids in self.prompts]

    def close(self):
        FakeAnswers.open_now -= 1


def fake_prompts(texts, rows, valid, tokenizer):
    """Prompts of a token for each character; without texts those of validation rows."""
    texts = texts or [f"row {row.line}" for row in valid.rows[:2]]
    return [Prompt(text, tuple(range(len(text)))) for text in texts]


class FakeLearner:
    notes = ("rotations as the learner says",)
    seconds = 0.0  # what an update takes
    hold_at = None  # the update of this step makes the file `held`, and waits for the file `go`

    def __init__(
        self,
        base,
        lora,
        *,
        device,
        max_tokens,
        max_row,
        grad_checkpoint=False,
        capture="f32",
        tuning=None,
    ):
        self.tuning = tuning or DEFAULT_CPU
        self.lora, self.max_tokens, self.max_row = lora, max_tokens, max_row
        self.trainables = SimpleNamespace(made=lambda training: {"all": self})
        self.options = {"grad_checkpoint": grad_checkpoint, "capture": capture}
        self.targets = []
        for module in resolve_targets(lora.target_modules, LINEARS):
            layers = [0] if module == "output" else lora.layer_indices(LAYERS)
            self.targets += [tensor_name(module, layer) for layer in layers]
        self.shapes = {}
        for target in self.targets:
            self.shapes[f"{target}.lora_a"] = (lora.rank, WIDTH)
            self.shapes[f"{target}.lora_b"] = (WIDTH, lora.rank)
        self.parameter_count = sum(math.prod(shape) for shape in self.shapes.values())
        self.nbytes = 16 * self.parameter_count
        self.plan = SimpleNamespace(
            by_purpose=lambda: {"adapter": self.nbytes},
            largest=lambda: ("parameters 0", 4 * self.parameter_count),
            max_tokens=max_tokens,
        )
        self.set_parameters({name: np.zeros(s, np.float32) for name, s in self.shapes.items()})
        zeros = {name: np.zeros(s, np.float32) for name, s in self.shapes.items()}
        self.set_moments(zeros, zeros)
        self.poison_at = None  # a step whose loss becomes NaN
        self.micros = []
        self.reset()

    def check(self, device):
        pass

    def take_over(self, other):
        self.set_parameters(other.p)

    async def build(self):
        self.built = True

    def _zero(self):
        self.g = {name: np.zeros(s, np.float32) for name, s in self.shapes.items()}
        self.loss_sum, self.count = 0.0, 0

    def reset(self):
        self.latched, self.unread = False, []
        self._zero()

    def drop_window(self):
        self._zero()

    async def window_count(self):
        return self.count

    def set_parameters(self, tensors):
        assert {n: x.shape for n, x in tensors.items()} == self.shapes
        self.p = {name: np.array(tensors[name], np.float32) for name in self.shapes}

    async def parameters(self):
        return {name: x.copy() for name, x in self.p.items()}

    def set_moments(self, m, v):
        self.m = {name: np.array(m[name], np.float32) for name in self.shapes}
        self.v = {name: np.array(v[name], np.float32) for name in self.shapes}

    async def moments(self):
        return ({n: x.copy() for n, x in self.m.items()}, {n: x.copy() for n, x in self.v.items()})

    def micro(self, batch, *, dropout_key=0):
        assert len(batch.tokens) <= self.max_tokens
        assert max(batch.ends - batch.starts) <= self.max_row
        self.micros.append((batch.lines, dropout_key))
        loss, count = self._loss(batch, dropout_key, self.g)
        self.loss_sum += loss
        self.count += count

    def _loss(self, batch, dropout_key, gradients=None):
        trained = np.flatnonzero(batch.targets >= 0)
        tokens, targets = batch.tokens[trained], batch.targets[trained]
        logits = np.zeros((len(trained), VOCAB), np.float32)
        scale = np.float32(self.lora.alpha / self.lora.rank)
        kept = []
        for i, target in enumerate(self.targets):
            table, head = _tables(i)
            x = table[tokens]
            if gradients is not None and self.lora.dropout:
                u = random.uniform(random.key(dropout_key, "mask", i), x.size).reshape(x.shape)
                x = x * (u >= self.lora.dropout) / np.float32(1 - self.lora.dropout)
            z = x @ self.p[f"{target}.lora_a"].T
            logits += scale * (z @ self.p[f"{target}.lora_b"].T) @ head.T
            kept.append((target, head, x, z))
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        loss = float(-np.log(p[np.arange(len(p)), targets]).sum())
        if gradients is not None:
            p[np.arange(len(p)), targets] -= 1
            for target, head, x, z in kept:
                dy = scale * p @ head
                gradients[f"{target}.lora_b"] += dy.T @ z
                gradients[f"{target}.lora_a"] += (dy @ self.p[f"{target}.lora_b"]).T @ x
        return loss, len(trained)

    def update(
        self,
        *,
        step,
        learning_rate,
        weight_decay=0.0,
        max_grad_norm=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
    ):
        time.sleep(self.seconds)
        if step == self.hold_at:
            Path("held").touch()
            while not Path("go").exists():
                time.sleep(0.001)
        f = np.float32
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in self.g.values()))
        norm /= self.count
        loss = math.nan if step == self.poison_at else self.loss_sum / self.count
        self.latched = self.latched or not math.isfinite(loss + norm)
        self.unread.append(
            SimpleNamespace(
                step=step, loss=loss, count=self.count, grad_norm=norm, finite=not self.latched
            )
        )
        clip = min(1.0, max_grad_norm / norm) if max_grad_norm and norm else 1.0
        for name, g in self.g.items():
            if self.latched:
                break
            g = g * f(clip / self.count)
            self.m[name] = f(betas[0]) * self.m[name] + f(1 - betas[0]) * g
            self.v[name] = f(betas[1]) * self.v[name] + f(1 - betas[1]) * g * g
            m = self.m[name] / f(1 - betas[0] ** step)
            v = self.v[name] / f(1 - betas[1] ** step)
            self.p[name] *= f(1 - learning_rate * weight_decay)
            self.p[name] -= f(learning_rate) * m / (np.sqrt(v) + f(eps))
        self._zero()

    async def reports(self, steps):
        reports = {report.step: report for report in self.unread}
        return [reports[step] for step in steps]

    async def evaluate(self, batches):
        parts = [self._loss(batch, 0) for batch in batches]
        return sum(loss for loss, _ in parts), sum(count for _, count in parts)

    def close(self):
        self.closed = True


def _tables(i):
    rng = np.random.default_rng(i)
    table = rng.normal(0, 1, (VOCAB, WIDTH)).astype(np.float32)
    return table, rng.normal(0, 0.5, (VOCAB, WIDTH)).astype(np.float32)


def fake_rows(n=14, seq_len=16, name="rows.jsonl"):
    """Rows of unequal length with a learnable rule: the next token is 3 t + 1; some not trained."""
    rng = np.random.default_rng(5)
    rows = []
    for line in range(1, n + 1):
        length = int(rng.integers(3, 9))
        tokens = [int(rng.integers(0, VOCAB))]
        while len(tokens) < length:
            tokens.append((3 * tokens[-1] + 1) % VOCAB)
        targets = [-1, *tokens[2:], -1]
        rows.append(Row(np.array(tokens, np.uint32), np.array(targets, np.int32), line))
    return Dataset(rows, name, seq_len, 0, 0, [])


def fake_dataset(data, model, seq_len, train_on, now, kind, name="data", chat=None):
    """Rows from the bytes of lines {"tokens", "targets"}, as `load_dataset` would give them."""
    rows = []
    for line, text in enumerate(data.decode().splitlines(), 1):
        row = json.loads(text)
        tokens = np.array(row["tokens"][:seq_len], np.uint32)
        targets = np.array(row["targets"][:seq_len], np.int32)
        if train_on == "all":
            targets[:-1] = tokens[1:]
        rows.append(Row(tokens, targets, line))
    return Dataset(rows, name, seq_len, 0, 0, ["a note"], train_on)


def write_rows(path, n=14):
    """A file for `fake_dataset`."""
    rows = fake_rows(n).rows
    lines = [{"tokens": r.tokens.tolist(), "targets": r.targets.tolist()} for r in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def install(patch=setattr):
    """Puts the toy in the place of model, rows and learner of `wgtrain train`."""
    from wgtrain.runs import session
    from wgtrain.train import trainer

    patch(trainer, "lora_learner", FakeLearner)
    patch(session, "opened_base", contextlib.nullcontext)
    patch(session, "training_tokenizer", lambda base: None)
    patch(session, "load_model", FakeModel)
    patch(session, "load_dataset", fake_dataset)
    patch(session, "plan", FakePlan)
    patch(session, "sample_prompts", fake_prompts)
    patch(Fit, "explained", lambda self, error, tuning: error)


if __name__ == "__main__":  # the command line with the toy; each step takes at least argv[1]
    install()
    FakeLearner.seconds = float(sys.argv[1])
    FakeLearner.hold_at = int(os.environ.get("FAKE_HOLD_AT", 0))
    main(sys.argv[2:])
