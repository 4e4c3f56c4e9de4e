"""Which tuning table a run uses: measured tables kept per user, and when a sweep pays.

A file per adapter, driver and version of the kernels lies in the user's cache folder, or in
`WGTRAIN_CACHE`. A page has no such folder: it uses the default tables, or one handed to `Trainer`.
"""

import hashlib
import json
import math
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgtrain import __version__, gpu
from wgtrain.engine import candidates
from wgtrain.engine.candidates import is_listed
from wgtrain.engine.kernel import read_shader, shader_paths
from wgtrain.engine.plan import Plan
from wgtrain.engine.tables import choice_from_json, choice_to_json
from wgtrain.engine.tuning import Choice, Tuning, default_tuning, runs_on
from wgtrain.gpu import AdapterInfo, Device
from wgtrain.tune.sweep import (
    GPU_SECONDS,
    SECONDS,
    Measured,
    Shape,
    heaviest,
    measure,
    replayed,
    worthwhile,
)

# Shows that something takes its time: (number of parts, what in words), then each part's name.
Watch = Callable[[int, str], AbstractContextManager[Callable[[str], None]]]
VARIABLE = "WGTRAIN_CACHE"
FORMAT = 1
MOST_BYTES = 4 << 20  # of a cache file
# Operations of a whole run from which on a sweep pays: about a minute of training.
WORTH = {"CPU": 2e12}
GPU_WORTH = 2e13


def unwatched(parts: int, what: str) -> AbstractContextManager[Callable[[str], None]]:
    """A `Watch` that shows nothing."""
    return nullcontext(lambda name: None)


@dataclass(frozen=True)
class Cached:
    """What a cache file holds; `problem` in words where it is there and cannot be used."""

    measured: tuple[Measured, ...] = ()
    made: str = ""  # when: a date and a time
    problem: str = ""


def choose(
    device: Device, plan: Plan, max_row: int, replays: int, mode: str, watch: Watch = unwatched
) -> Tuning:
    """The table for a plan, not built yet, of rows up to `max_row` tokens, replayed so often.

    "auto" takes what was measured on this adapter for shapes like these, and measures what is
    missing where it pays; "measure" measures anew; "default" does neither. `watch` shows how far
    a sweep is.
    """
    if mode == "default" or sys.platform == "emscripten":
        return default_tuning(device)
    cached = load(device.info)
    known = _alike(cached.measured, device, plan) if mode == "auto" else {}
    missing = [family for family in worthwhile(device, plan) if family not in known]
    work = replays * sum(x.kernel.work(x.params, plan.max_tokens) for x in replayed(plan))
    if not missing or (mode == "auto" and work < WORTH.get(device.info.type, GPU_WORTH)):
        problem = cached.problem
        if problem and not save(device.info, ()):
            problem += ", and made anew"
        return table(device, known.values(), cached.made, problem)
    began = time.perf_counter()
    limit = SECONDS.get(device.info.type, GPU_SECONDS)
    text = f"measuring the kernels of {device.info.name}, for {limit:.0f} s at most, once"
    with watch(len(missing), text) as begin:
        fresh = gpu.run(measure(device, plan, max_row, families=missing, begin=begin))
    seconds = time.perf_counter() - began
    problem = save(device.info, fresh, cached.measured) or cached.problem
    made = f"now in {seconds:.1f} s"
    return table(device, [*known.values(), *fresh], made, problem)


def table(device: Device, measured: Iterable[Measured], made: str, problem: str = "") -> Tuning:
    """The defaults of an adapter with what was measured over them."""
    base = default_tuning(device)
    choices = {entry.family: entry.choice for entry in measured}
    origin = f"{len(choices)} kernels measured {made}" if choices else base.origin
    return Tuning({**base.table, **choices}, f"{origin} ({problem})" if problem else origin)


def _alike(measured: Iterable[Measured], device: Device, plan: Plan) -> dict[str, Measured]:
    """By family, what was measured for shapes like those of a plan and runs here."""
    shapes = {family: shape for family, (_, shape, _) in heaviest(plan).items()}
    return {
        entry.family: entry
        for entry in measured
        if entry.family in shapes
        and entry.shape.alike(shapes[entry.family])
        and runs_on(entry.choice, entry.family, device)
    }


# ---- the file ----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where measured tables are kept."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "wgtrain"


def cache_file(info: AdapterInfo) -> Path:
    """The file of an adapter, with this driver and these kernels."""
    digest = hashlib.sha256(json.dumps(_key(info)).encode()).hexdigest()
    return cache_folder() / f"tuning-{digest[:16]}.json"


def _key(info: AdapterInfo) -> dict[str, str]:
    code = hashlib.sha256(repr((candidates.CANDIDATES, candidates.GPU_CANDIDATES)).encode())
    for path in shader_paths():
        code.update(read_shader(path).encode())
    return {
        "adapter": info.name,
        "backend": info.backend,
        "driver": info.driver,
        "version": __version__,
        "kernels": code.hexdigest(),
    }


def load(info: AdapterInfo) -> Cached:
    """What was measured on an adapter; nothing where the file is damaged, made by others, or names
    kernels that this version does not have.
    """
    path = cache_file(info)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # to read a pipe would wait
            return Cached(problem=f"{path} is ignored: not a file")
        if found.st_size > MOST_BYTES:
            return Cached(problem=f"{path} is ignored: {found.st_size:,} bytes")
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT or data["key"] != _key(info):
            raise ValueError
        measured = tuple(_measured(entry) for entry in data["measured"])
        if not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", data["made"]):
            raise ValueError
    except FileNotFoundError:
        return Cached()
    except OSError as error:
        return Cached(problem=f"{path} is ignored: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return Cached(problem=f"{path} is damaged and ignored")
    return Cached(measured, data["made"])


def save(info: AdapterInfo, measured: Iterable[Measured], kept: Iterable[Measured] = ()) -> str:
    """Writes what was measured over what is `kept`; what failed in words, or nothing."""
    entries = list(measured)
    entries += [old for old in kept if not any(_same(old, new) for new in entries)]
    data = {
        "format": FORMAT,
        "key": _key(info),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "measured": [_entry(entry) for entry in entries],
    }
    path = cache_file(info)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(data, file, indent=1)
        try:
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return ""


def _same(a: Measured, b: Measured) -> bool:
    return a.family == b.family and a.shape.alike(b.shape)


def _entry(entry: Measured) -> dict[str, Any]:
    return {
        "family": entry.family,
        "choice": choice_to_json(entry.choice),
        "rows": entry.shape.rows,
        "work": entry.shape.work,
        "rate": entry.rate,
        "default_rate": entry.default_rate,
        "tried": entry.tried,
    }


def _measured(entry: dict[str, Any]) -> Measured:
    choice: Choice = choice_from_json(entry["choice"])
    shape = Shape(int(entry["rows"]), float(entry["work"]))
    rates = float(entry["rate"]), float(entry["default_rate"])
    numbers = (float(shape.rows), shape.work, *rates)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError
    if not isinstance(entry["family"], str) or not is_listed(choice, entry["family"]):
        raise ValueError
    return Measured(entry["family"], choice, shape, *rates, int(entry["tried"]))
