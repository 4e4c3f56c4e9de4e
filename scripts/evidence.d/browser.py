"""The page against native on the same software driver: step time, start, bytes, memory.

Chromium's SwiftShader on both sides. A step is one of stories15M's shape, 4 rows of 128 tokens; the
memory is that of the page's process, in which the worker lives, while models of Qwen2.5-0.5B's and
1.5B's shapes, 600 MB and 2 GB, stream in and train a step of random tokens; both also with Qwen2's
vocabulary, whose tokenizer is made and used. Times are taken in turn, since a shared machine
changes speed.
"""

import os
import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
MOST_SLOWER, MOST_PYTHON, MOST_SECONDS, MOST_MEMORY = 1.25, 0.05, 8.0, 150
STEPS, TURNS = 3, 3
WITH_VOCABULARY = " with vocabulary"
LARGE = {"600 MB": (896, 14, 4864, 24), "2 GB": (1536, 12, 8960, 28)}  # width, heads, inner, layers

TRAIN = """
import page_train
from wgtrain.files.page import PageSource
source = await PageSource.url(values.model)
await page_train.speed(source, values.lengths.to_py(), values.steps, values.text)
"""


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a bound is missed."""
    from chromium import Driver, Tabs, chromium, make_site

    from wgtrain.web.server import Server

    site = make_site(folder / "site")
    write_models(folder, site)
    server = Server(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = Driver(chromium())
    tabs = Tabs(driver, f"http://127.0.0.1:{server.port}")
    try:
        for size in LARGE:
            memory(tabs, size, "", figures)
            memory(tabs, size + WITH_VOCABULARY, "Hello, world! " * 1000, figures)
        start(tabs, figures)
        figures["bytes of the site"] = transferred(tabs, site)
        step_time(tabs, site, figures)
    finally:
        driver.close()
        server.shutdown()
    assert figures["page / native"] <= MOST_SLOWER
    assert figures["share of Python in a step"] <= MOST_PYTHON
    assert statistics.median(figures["seconds from opening the page to the first step"]) <= (
        MOST_SECONDS
    )
    added = {
        name: figures[f"MB added by a model of {name}"]
        for size in LARGE
        for name in (size, size + WITH_VOCABULARY)
    }
    assert max(added.values()) <= MOST_MEMORY, added


def write_models(folder: Path, site: Path) -> None:
    """Random weights: stories15M's shape in F32; large ones in Q8_0, head not tied."""
    import needs
    import random_model

    from wgtrain.files import parse_gguf

    vocab = (needs.data() / "vocab" / "ggml-vocab-qwen2.gguf").read_bytes()
    found = parse_gguf(vocab).metadata
    tokenizer = {key: value for key, value in found.items() if key.startswith("tokenizer.")}
    small = random_model.Shape("", "llama", 288, 6, 6, 6, 48, 768, 32000, tied=True)
    makers = {"stories15M.gguf": lambda: random_model.build(small)}
    for size, (width, heads, inner, layers) in LARGE.items():
        shape = random_model.Shape(
            "", "qwen2", width, layers, heads, 2, width // heads, inner, 151_936, type="Q8_0"
        )
        makers[large_name(size)] = partial(build_large, shape, {})
        makers[large_name(size + WITH_VOCABULARY)] = partial(build_large, shape, tokenizer)
    for name, make in makers.items():
        if not (folder / name).is_file():
            (folder / name).write_bytes(make())
        (site / name).hardlink_to(folder / name)  # links out of a site are not followed


def large_name(size: str) -> str:
    """The file of a model of this size."""
    return size.replace(" ", "") + ".gguf"


def build_large(shape: Any, tokenizer: dict[str, Any]) -> bytes:
    """A model whose matrices repeat 64 random rows, which are quantised in no time."""
    from random_model import Raw, encode, write_gguf

    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, (rows, columns) in shape.config.matrices().items():
        values = rng.standard_normal((64, columns), np.float32) / np.float32(np.sqrt(columns))
        some = encode(values, shape.type)
        times = -(-rows // 64)
        data = memoryview(some.data * times)[: len(some.data) * rows // 64]
        tensors[name] = Raw(shape.type, (rows, columns), data)
    for name, length in shape.config.vectors().items():
        tensors[name] = np.full(length, not name.endswith("bias"), np.float32)
    return write_gguf(shape.metadata() | tokenizer, tensors)


def step_time(tabs: Any, site: Path, figures: dict[str, Any]) -> None:
    """One step after the other, each read back, without the first; page and native in turn."""
    from test_page_training import native

    values = {"model": "stories15M.gguf", "lengths": [128] * 4, "steps": STEPS, "text": ""}
    pages, natives = [], []
    for _ in range(TURNS):
        tab = tabs.open()
        pages.append(tab.python(TRAIN, **values))
        tab.close()
        natives.append(native("speed", str(site / "stories15M.gguf"), str(STEPS)))
    seconds = [[statistics.median(x["seconds"][1:]) for x in each] for each in (pages, natives)]
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    figures["seconds of a step in the page"] = [round(x, 3) for x in seconds[0]]
    figures["seconds of a step natively"] = [round(x, 3) for x in seconds[1]]
    figures["page / native, by turn"] = [round(x, 3) for x in ratios]
    figures["page / native"] = round(statistics.median(ratios), 3)
    python = [(sum(page["queueing"]) - page["inside"]) / STEPS for page in pages]
    figures["Python's milliseconds in a step"] = round(1000 * statistics.median(python), 2)
    shares = [a / b for a, b in zip(python, seconds[0], strict=True)]
    figures["share of Python in a step"] = round(max(shares), 5)
    both = zip(pages[0]["losses"], natives[0]["losses"], strict=True)
    largest = max(abs(a / b - 1) for a, b in both)
    figures["largest relative difference of a loss"] = f"{largest:.1e}"


def start(tabs: Any, figures: dict[str, Any]) -> None:
    """From opening the page to the report of a first step of stories260K, a few times."""
    code = (ROOT / "tests" / "browser" / "page_train.py").read_text()
    load = """
import sys, types
sys.modules["page_train"] = types.ModuleType("page_train")
exec(values.module, sys.modules["page_train"].__dict__)
"""
    values = {"model": "data/stories260K.gguf", "lengths": [32], "steps": 1, "text": ""}
    ready, first = [], []
    for _ in range(TURNS):
        began = time.monotonic()
        tab = tabs.open_site()
        tab.python("0")
        ready.append(round(time.monotonic() - began, 2))
        tab.python(load + TRAIN, module=code, **values)
        first.append(round(time.monotonic() - began, 2))
        tab.close()
    figures["seconds until Python is ready"] = ready
    figures["seconds from opening the page to the first step"] = first


def transferred(tabs: Any, site: Path) -> list[dict[str, Any]]:
    """What a page asked for until Python was ready in it, by file."""
    before = len(tabs.requested)
    tab = tabs.open_site()
    tab.python("0")
    tab.close()
    asked = {address.removeprefix(tabs.origin + "/") for address in tabs.requested[before:]}
    sizes = {
        name: (site / name).stat().st_size for name in sorted(asked) if (site / name).is_file()
    }
    return [
        {"file": name, "bytes": f"{size:,}"}
        for name, size in {**sizes, "sum": sum(sizes.values())}.items()
    ]


def memory(tabs: Any, size: str, text: str, figures: dict[str, Any]) -> None:
    """The page's process before and at its largest while a large model comes in and trains, after
    a text was encoded if there is one.
    """
    tab = tabs.open()
    tab.python("import page_train, wgtrain.train.trainer, wgtrain.api; 0")
    time.sleep(1)
    before, peak, running = renderers(), [0], True

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], renderers())
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        tab.python(TRAIN, model=large_name(size), lengths=[16], steps=1, text=text)
    finally:
        running = False
        watcher.join()
        tab.close()
    name = f"a model of {size}"
    figures[f"MB of the page before {name}"] = before >> 20
    figures[f"MB added by {name}"] = (peak[0] - before) >> 20
    seconds = round(time.monotonic() - began, 1)
    figures[f"seconds to load {name} and train a step"] = seconds


def renderers() -> int:
    """Resident bytes of the largest page process that descends from this one."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(status[1])
        if b"--type=renderer" in command:
            sizes[int(folder.name)] = int(status[21]) * os.sysconf("SC_PAGE_SIZE")
    return max((size for pid, size in sizes.items() if ours(pid, parents)), default=0)


def ours(pid: int, parents: dict[int, int]) -> bool:
    """Whether a process descends from this one."""
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()
