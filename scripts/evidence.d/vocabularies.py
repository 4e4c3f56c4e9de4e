"""Vocabularies beside llama.cpp: every name of words, real files, all of Unicode, time and memory.

Random strings are of the characters that Python's Unicode knows and that llama.cpp and the
`tokenizers` library class alike; the others are counted and listed. llama.cpp's sources, with the
vocabularies of its tests, are fetched by name. Time is processor time and memory that of a process
of its own.
"""

import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _sources import llama_cpp_sources

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
TEXTS, RUNS = 2000, 3
MOST_SECONDS, MOST_KEPT, MOST_PEAK = 4.0, 150, 350  # of a vocabulary of 262,144, MB
SEPARATOR = "\n__ggml_vocab_test__\n"
_CATEGORIES = ("N", "L", "Z", "M", "P", "S", "Cc", "Cf")
_BITS = {2: "N", 4: "L", 8: "Z", 16: "M", 32: "P", 64: "S", 128: "C"}  # of llama.cpp's table

LOAD = """
import json, sys, time
from pathlib import Path
import numpy, tokenizers
import wgtrain.api
from wgtrain.runs.sources import FileSource
from wgtrain.data import load_tokenizer
from wgtrain.files.gguf import read_gguf
from wgtrain.gpu import run

def memory():
    lines = open("/proc/self/status").read().splitlines()
    found = dict(line.split(":\\t") for line in lines)
    return [int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]

if folder := Path(sys.argv[1]).is_dir():
    source = sys.argv[1]
else:
    source = run(read_gguf(FileSource(sys.argv[1]))).metadata
before, began = memory()[0], time.process_time()
tokenizer = wgtrain.load_tokenizer(source) if folder else load_tokenizer(source)
seconds, (kept, peak) = time.process_time() - began, memory()
assert tokenizer.decode(tokenizer.encode("Hello, world!")) == "Hello, world!"
print(json.dumps([tokenizer.vocab_size, seconds, kept - before, peak - before]))
"""
IN_PAGE = """
import time
from wgtrain.data import load_tokenizer
from wgtrain.files.gguf import read_gguf
from wgtrain.files.page import PageSource
gguf = await read_gguf(await PageSource.url("model.gguf"))
began = time.time()
tokenizer = load_tokenizer(gguf.metadata)
seconds = time.time() - began
assert tokenizer.decode(tokenizer.encode(values.text)) == values.text
[seconds, tokenizer.encode(values.text)]
"""


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where an id differs or a bound is missed."""
    import unicode_texts
    from real_gemma import model_file

    sources = llama_cpp_sources(folder)
    letters = agreed(sources / "src" / "unicode-data.cpp", figures)
    kinds = unicode_texts.by_category(letters)
    gemma = model_file()
    figures["vocabularies"] = [
        *(published(path, kinds) for path in sorted((sources / "models").glob("*.gguf"))),
        real(gemma, kinds),
    ]
    figures["names"] = names(kinds)
    for what, source in (("", gemma), (" from a folder", gemma_folder(folder / "gemma", gemma))):
        load_time(what, source, figures)
    page(folder, gemma, figures)
    rows = [*figures["vocabularies"], *figures["names"]]
    assert not any(value for row in rows for key, value in row.items() if "differ" in key)


def agreed(table: Path, figures: dict[str, Any]) -> list[str]:
    """The assigned characters that are of one class to llama.cpp and to the library."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    source = table.read_text("utf-8")
    source = source[source.index("unicode_ranges_flags") : source.index("unicode_set_whitespace")]
    rows = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"\{0x(\w{6}), 0x(\w{4})\}", source)]
    starts = np.array([start for start, _ in rows])
    every = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    every = [letter for letter in every if unicodedata.category(letter) not in ("Cn", "Co")]
    text, library = "".join(every), {}
    for category in _CATEGORIES:
        split = Split(Regex(rf"\p{{{category}}}"), "removed", invert=True)
        for at in range(0, len(text), 128):
            for letter, _ in split.pre_tokenize_str(text[at : at + 128]):
                library[letter] = category[0]
    flags = [rows[i][1] & 0xFF for i in np.searchsorted(starts, list(map(ord, every)), "right") - 1]
    llama = {letter: _BITS.get(flag) for letter, flag in zip(every, flags, strict=True)}
    rest = [letter for letter in every if library.get(letter) != llama[letter]]
    figures["characters"] = f"{len(every) - len(rest):,} alike, {len(rest):,} not"
    figures["characters left out"] = " ".join(f"U+{ord(letter):04X}" for letter in rest)
    left_out = set(rest)
    return [letter for letter in every if letter not in left_out]


def compare(metadata: dict[str, Any], kinds: list[list[str]], n: int) -> tuple[int, int]:
    """How many of n random strings have other ids than llama.cpp's, with and without special
    tokens, and how many of the tokens in them stand for other bytes.
    """
    import unicode_texts
    from llama_cpp_vocab import LlamaCppVocab
    from test_tokenizer import special_pieces

    from wgtrain.data import load_tokenizer

    ours, theirs = load_tokenizer(metadata), LlamaCppVocab(metadata)
    rng, specials = random.Random(metadata.get("tokenizer.ggml.pre")), special_pieces(metadata)
    texts = [unicode_texts.random_text(rng, kinds, specials) for _ in range(n - 1)]
    ids, seen = 0, set()
    for text in [unicode_texts.AWKWARD, *texts]:
        for special in (False, True):
            judged = theirs.encode(text, special=special)
            ids += ours.encode(text, special=special) != judged
            seen |= set(judged)
    spelled = sum(
        ours.decode_bytes([i], True, start=False) != theirs.spell([i], True) for i in seen
    )
    theirs.close()
    return ids, spelled


def published(path: Path, kinds: list[list[str]]) -> dict[str, Any]:
    """One of llama.cpp's own vocabularies: its published ids, and random strings."""
    from wgtrain.data import load_tokenizer
    from wgtrain.errors import FileError
    from wgtrain.files import parse_gguf

    name = path.stem.removeprefix("ggml-vocab-")
    metadata = parse_gguf(path.read_bytes(), path.name).metadata
    try:
        ours = load_tokenizer(metadata)
    except FileError as error:
        assert metadata["tokenizer.ggml.model"] in ("bert", "t5"), error
        return {"vocabulary": name, "refused": str(error).partition(";")[0]}
    row: dict[str, Any] = {"vocabulary": name, "pieces": ours.vocab_size}
    inputs = Path(f"{path}.inp")
    if inputs.is_file():
        texts = inputs.read_text("utf-8").split(SEPARATOR)
        lines = Path(f"{path}.out").read_text().splitlines()
        pairs = list(zip(texts, lines, strict=False))
        row["published"] = len(pairs)
        row["published ids that differ"] = sum(
            ours.encode(text) != [int(word) for word in line.split()] for text, line in pairs
        )
    row["random strings"] = TEXTS
    row["ids differ"], row["bytes differ"] = compare(metadata, kinds, TEXTS)
    return row


def real(path: Path, kinds: list[list[str]]) -> dict[str, Any]:
    """The vocabulary of a real model."""
    from wgtrain.files.gguf import read_gguf
    from wgtrain.gpu import run
    from wgtrain.runs.sources import FileSource

    metadata = run(read_gguf(FileSource(path))).metadata
    held = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    ids, decoded = compare(held, kinds, TEXTS)
    row = {"vocabulary": path.stem, "pieces": len(held["tokenizer.ggml.tokens"])}
    return row | {"random strings": TEXTS, "ids differ": ids, "bytes differ": decoded}


def names(kinds: list[list[str]]) -> list[dict[str, Any]]:
    """Every name of words, with GPT-2's vocabulary and with one that joins any two bytes."""
    import vocabs

    from wgtrain.data.pretokenizers import PRE_TOKENIZERS

    rows = []
    for name in PRE_TOKENIZERS:
        row: dict[str, Any] = {"name": name}
        for what, held in (("gpt-2", vocabs.metadata("gpt-2")), ("pairs", vocabs.pairs())):
            held = held | {"tokenizer.ggml.pre": name}
            row[f"{what}: ids differ"], row[f"{what}: bytes differ"] = compare(held, kinds, TEXTS)
        rows.append(row)
    return rows


def gemma_folder(folder: Path, path: Path) -> Path:
    """The same vocabulary as a folder's tokenizer.json, as the library writes it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    from wgtrain.data.special_tokens import CONTROL, UNKNOWN, USER_DEFINED
    from wgtrain.data.tokenizer_json import SPACE, merge_pieces
    from wgtrain.data.vocabulary import read_vocabulary
    from wgtrain.files.gguf import read_gguf
    from wgtrain.gpu import run
    from wgtrain.runs.sources import FileSource

    read = read_vocabulary(run(read_gguf(FileSource(path))).metadata, path.name)
    pieces = [piece.replace(" ", SPACE) for piece in read.pieces]
    merges = merge_pieces(replace(read, pieces=pieces))
    ids = {piece: i for i, piece in enumerate(pieces)}
    library = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Replace(" ", SPACE)
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    for kinds, add in (
        ((CONTROL, UNKNOWN), library.add_special_tokens),
        ((USER_DEFINED,), library.add_tokens),
    ):
        added = np.flatnonzero(np.isin(read.types, kinds))
        add([AddedToken(pieces[i], normalized=False) for i in added])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    named = {"bos_token": pieces[read.bos_id], "eos_token": pieces[read.eos_id]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"add_bos_token": True}))
    return folder


def load_time(what: str, path: Path, figures: dict[str, Any]) -> None:
    """Processor time and memory of a process that loads a large vocabulary, a few times; raises
    where a bound is missed.
    """
    runs = []
    for _ in range(RUNS):
        done = subprocess.run([sys.executable, "-c", LOAD, path], check=True, capture_output=True)
        runs.append(json.loads(done.stdout))
    figures["pieces of Gemma 3"] = runs[0][0]
    seconds = [round(seconds, 2) for _, seconds, _, _ in runs]
    kept, peak = (round(max(run[i] for run in runs)) for i in (2, 3))
    figures[f"seconds of the processor to load Gemma 3's vocabulary{what}"] = seconds
    figures[f"MB kept of it{what}"], figures[f"MB at its peak{what}"] = kept, peak
    assert max(seconds) <= MOST_SECONDS and kept <= MOST_KEPT and peak <= MOST_PEAK


def page(folder: Path, path: Path, figures: dict[str, Any]) -> None:
    """The same vocabulary in a page: seconds, and what its process grows by at most."""
    from browser import renderers
    from chromium import Driver, Tabs, chromium, make_site

    from wgtrain.api import load_tokenizer
    from wgtrain.web.server import Server

    site = make_site(folder / "site")
    linked = site / "model.gguf"
    try:
        linked.hardlink_to(path)
    except OSError:  # on another file system
        linked.write_bytes(path.read_bytes())
    server = Server(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = Driver(chromium())
    text = "Hello, world! Ünïcödé  and\n\n\nlines 12345"
    seconds, added = [], []
    try:
        tabs = Tabs(driver, f"http://127.0.0.1:{server.port}")
        for _ in range(RUNS):
            tab = tabs.open()
            tab.python("import wgtrain.data, wgtrain.files.page; 0")
            before, peak, running = renderers(), [0], [True]
            watcher = threading.Thread(target=watch, args=(renderers, peak, running))
            watcher.start()
            took, ids = tab.python(IN_PAGE, text=text)
            running.clear()
            watcher.join()
            tab.close()
            assert ids == load_tokenizer(path).encode(text)
            seconds.append(round(took, 1))
            added.append((peak[0] - before) >> 20)
    finally:
        driver.close()
        server.shutdown()
    figures["seconds to load it in a page"] = seconds
    figures["seconds to load it in a page, median"] = statistics.median(seconds)
    figures["MB that the page's process grows by at most"] = max(added)


def watch(size: Any, peak: list[int], running: list[bool]) -> None:
    """Keeps the largest size until `running` is empty."""
    while running:
        peak[0] = max(peak[0], size())
        time.sleep(0.05)
