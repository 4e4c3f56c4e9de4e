"""A real Gemma 3 270M as Q4_K_M, the file as it comes: beside llama.cpp and PEFT, and in a page.

The judges read F32: llama.cpp a GGUF of the dequantised weights, transformers and PEFT those same
weights. The model comes by package name (`get-gemma` of the shared data) and goes nowhere else.
"""

import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import wgtrain
from wgtrain.data.batches import Batches

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
RANK, ALPHA, STEPS, RATE, WARMUP, SEED, SEQ_LEN = 8, 16.0, 100, 2e-4, 10, 42, 256
CHECKED, WRITTEN, HELD, PAGE_STEPS = 64, 100, 12, 5
LOGITS, LOSSES, PAGE = 1e-3, 1e-4, 1e-4


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a bound is missed; the adapter stays in `folder`."""
    import needs
    from llama_cpp_oracle import LlamaCpp
    from real_gemma import dequantised, model_file

    data = needs.data()
    path = model_file()
    reader = gguf.GGUFReader(path)
    figures["types"] = {
        kind.name: sum(t.tensor_type == kind for t in reader.tensors)
        for kind in sorted({t.tensor_type for t in reader.tensors})
    }
    weights = dequantised(reader)
    plain = folder / "f32.gguf"
    write_f32(reader, weights, plain)

    began = time.perf_counter()
    model = wgtrain.load_model(path)
    figures["seconds to load"] = round(time.perf_counter() - began, 1)
    planned, taken = model.base.weights.nbytes, model.device.allocated
    figures["bytes of the model, planned and taken"] = [planned, taken]
    assert planned == taken
    rows, valid = (
        wgtrain.load_dataset(
            (data / f"wikisql_{part}.jsonl").read_bytes(), model, seq_len=SEQ_LEN, name=part
        )
        for part in ("train", "valid")
    )
    judge = LlamaCpp(plain)
    valid = replace(valid, rows=valid.rows[:HELD])
    check_logits(model, judge, rows.rows[0].tokens, figures)
    prompt = "Once upon a time, in a village by the sea,"
    check_text(model, judge, prompt, figures)
    judge.close()
    plain.unlink()
    check_training(model, weights, rows, valid, folder, figures)
    quantised = LlamaCpp(path)
    adapter = (folder / "adapter.gguf").read_bytes()
    check_adapter(model, quantised, quantised.adapter(adapter), adapter, valid, figures)
    quantised.close()
    model.close()
    check_page(path, data, folder, figures)


def write_f32(reader: Any, weights: dict[str, np.ndarray], path: Path) -> None:
    """The same model with every tensor as F32."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_logits(model: Any, judge: Any, tokens: np.ndarray, figures: dict[str, Any]) -> None:
    """Of 64 tokens of a row, relative to their range."""
    tokens = np.resize(tokens, CHECKED)
    ours, theirs = model.logits(tokens.tolist()), judge.logits(tokens)
    apart = np.abs(ours - theirs).max() / np.ptp(theirs)
    figures[f"logits of {CHECKED} tokens beside llama.cpp, of their range"] = f"{apart:.1e}"
    assert apart <= LOGITS, apart


def check_text(model: Any, judge: Any, prompt: str, figures: dict[str, Any]) -> None:
    """Greedy tokens of both; where they part, how near the two best logits are."""
    start = model.tokenizer.encode(prompt, bos=True)
    (ours,) = model.complete([start], WRITTEN)
    row = list(start)
    for number in range(len(ours)):
        logits = judge.logits(np.array(row))[-1]
        best = int(logits.argmax())
        if best != ours[number]:
            margin = float((logits[best] - logits[ours[number]]) / np.ptp(logits))
            figures["greedy text parts"] = f"at token {number}, margin {margin:.1e} of the range"
            assert margin <= LOGITS, margin
            break
        row.append(best)
    else:
        figures["greedy tokens equal to llama.cpp's"] = len(ours)
    figures["greedy text"] = prompt + model.tokenizer.decode(ours)


def check_training(
    model: Any,
    weights: dict[str, np.ndarray],
    rows: Any,
    valid: Any,
    folder: Path,
    figures: dict[str, Any],
) -> None:
    """The same rows, order, settings and start on both sides."""
    from peft_oracle import Peft, Settings
    from real_gemma import base_for_peft

    config = wgtrain.TrainConfig(
        epochs=None,
        iters=STEPS,
        batch_size=1,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        seed=SEED,
        seq_len=SEQ_LEN,
        eval_every=0,
    )
    lora = wgtrain.LoraConfig(rank=RANK, alpha=ALPHA)
    trainer = wgtrain.Trainer(model, rows, lora, config, valid)
    before_build = model.device.allocated
    start = trainer.adapter().tensors  # which builds
    planned, taken = trainer.learner.nbytes, model.device.allocated - before_build
    figures["bytes of training, planned and taken"] = [planned, taken]
    steps, at = [], []
    for step in trainer.run():
        steps.append(step)
        at.append(time.perf_counter())
    figures["seconds a step"] = round((at[-2] - at[0]) / (STEPS - 2), 2)
    first, last = trainer.evaluations[0], trainer.evaluations[-1]
    before, after, count = first.loss, last.loss, first.count
    (folder / "adapter.gguf").write_bytes(trainer.adapter_gguf())
    trainer.close()
    assert planned == taken

    batches = Batches(rows.rows, batch_size=1, seed=SEED, seq_len=rows.seq_len)
    order = [i for batch in batches.per_epoch(0) for i in batch][:STEPS]
    theirs = Peft(base_for_peft(weights), start, ALPHA)
    held = [(row.tokens, row.targets) for row in valid.rows]
    their_before, _ = theirs.evaluate(held, batch=1)
    began = time.perf_counter()
    run = theirs.train(
        [(rows.rows[i].tokens, rows.rows[i].targets) for i in order],
        Settings(STEPS, 1, 1, RATE, "cosine", WARMUP, 0.0, 1.0),
    )
    figures["seconds a step of PEFT"] = round((time.perf_counter() - began) / STEPS, 2)
    their_after, _ = theirs.evaluate(held, batch=1)
    apart = np.abs(np.array([s.loss for s in steps]) / np.array(run.losses) - 1)
    figures["loss of the validation rows"] = [
        {"side": "wgtrain", "before": before, "after": after},
        {"side": "PEFT", "before": their_before / count, "after": their_after / count},
    ]
    figures["largest relative difference of a step's loss"] = f"{apart.max():.1e}"
    figures["first and last loss"] = [steps[0].loss, steps[-1].loss]
    assert apart.max() <= LOSSES and after < before


def check_adapter(
    model: Any, quantised: Any, handle: Any, adapter: bytes, valid: Any, figures: dict[str, Any]
) -> None:
    """In llama.cpp on the very file, which rounds activations to eight bits."""
    losses: dict[str, list[float]] = {"before": [], "after": []}
    for row in valid.rows:
        trained = row.targets >= 0
        for name, used in (("before", None), ("after", handle)):
            logits = quantised.logits(row.tokens, used).astype(np.float64)[trained]
            top = logits.max(-1)
            total = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
            right = logits[np.arange(len(logits)), row.targets[trained]]
            losses[name].append(float((total - right).mean()))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    figures["loss of the validation rows in llama.cpp on the quantised file"] = means
    assert means["after"] < 0.9 * means["before"], means
    text = model.tokenizer.decode(valid.rows[0].tokens.tolist())
    question = text[: text.index("\nA:") + 3]
    figures["asked"] = question
    figures["answered before"] = "".join(model.generate(question, max_tokens=40))
    tuned = model.generate(question, max_tokens=40, adapters=[(adapter, 1.0)])
    figures["answered after"] = "".join(tuned)


PAGE_CODE = """
import page_train
from pyodide.http import pyfetch
from dataclasses import replace
from wgtrain.files.page import PageSource

rows = await (await pyfetch("rows.jsonl")).bytes()
source = await PageSource.url("gemma.gguf")
config = replace(
    page_train.settings(values.steps), batch_size=1, grad_accum=1, learning_rate=values.rate
)
trainer = await page_train.make(source, rows, config=config)
found = [result.loss async for result in trainer.aio.run()]
trainer.close()
trainer.model.close()
found
"""


def check_page(path: Path, data: Path, folder: Path, figures: dict[str, Any]) -> None:
    """A few steps of batch 1 in a page on SwiftShader beside the same natively."""
    import page_train
    from chromium import Driver, Tabs, chromium, make_site

    from wgtrain.files import BytesSource
    from wgtrain.gpu import run
    from wgtrain.web.server import Server

    site = make_site(folder / "site")
    shutil.copyfile(path, site / "gemma.gguf")
    lines = (data / "wikisql_train.jsonl").read_bytes().splitlines(keepends=True)
    (site / "rows.jsonl").write_bytes(b"".join(lines[:PAGE_STEPS]))
    server = Server(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = Driver(chromium())
    try:
        tab = Tabs(driver, f"http://127.0.0.1:{server.port}").open()
        began = time.perf_counter()
        losses = tab.python(PAGE_CODE, steps=PAGE_STEPS, rate=RATE)
        figures["seconds to load and train in a page"] = round(time.perf_counter() - began, 1)
        tab.close()
    finally:
        driver.close()
        server.shutdown()
    (site / "gemma.gguf").unlink()

    async def native() -> list[float]:
        trainer = await page_train.make(
            BytesSource(path.read_bytes()),
            (site / "rows.jsonl").read_bytes(),
            config=replace(
                page_train.settings(PAGE_STEPS), batch_size=1, grad_accum=1, learning_rate=RATE
            ),
        )
        found = [result.loss async for result in trainer.aio.run()]
        trainer.model.close()
        return found

    apart = np.abs(np.array(losses) / np.array(run(native())) - 1)
    figures[f"losses of {PAGE_STEPS} steps in a page"] = losses
    figures["largest relative difference of a loss in a page"] = f"{apart.max():.1e}"
    assert apart.max() <= PAGE
