"""The process that runs a chat template: frames of rows come in by stdin, answers go to stdout.

It may be ended at any moment, and ends itself where the system can do that: at the limit of
computing time by a signal that nothing a template calls can hold up, at that of memory by
MemoryError.
"""

import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from wgtrain.chat import bounds, frames
from wgtrain.chat.choice import Templates
from wgtrain.errors import FileError

Answer = dict[str, Any]


def main() -> None:
    """Compiles the template of the first frame, then answers each row of every other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if hasattr(signal, "SIGPROF"):  # ends this process, whatever was inherited
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    source, out = sys.stdin.buffer, sys.stdout.buffer
    limit = _memory_limit()

    template: list[Templates] = []

    def compiled(settings: dict[str, Any]) -> Answer:
        template.append(make(settings))
        return {"variables": template[0].variables}

    def rendered(row: dict[str, Any]) -> Answer:
        return answer(template[0], row)

    def tell(handle: Callable[[Any], Answer], value: Any, seconds: float) -> None:
        _alarm(seconds)
        found = timed(handle, value)
        _alarm(0)
        out.write(frames.encode(found))
        out.flush()

    tell(compiled, frames.read(source, limit), bounds.COMPILING)
    while (rows := frames.read(source, limit)) is not None:
        for n_bytes, row in rows:
            tell(rendered, row, bounds.row_seconds(n_bytes))


def make(settings: dict[str, Any]) -> Templates:
    """The templates of settings that travelled as JSON."""
    now = settings["now"]
    return Templates(**{**settings, "now": now and datetime.fromisoformat(now)})


def answer(template: Templates, row: dict[str, Any]) -> Answer:
    """What a row asks for: a text alone where it says `prompt`, or its spans as well."""
    if "prompt" in row:
        return {"text": template.render(**row)}
    return vars(template.split(**row))


def timed(handle: Callable[[Any], Answer], value: Any) -> Answer:
    """An answer, or the words of the `error` instead, and the `seconds` of computing it took."""
    began = time.process_time()
    try:
        found = handle(value)
    except FileError as error:
        found = {"error": str(error)}
    return {**found, "seconds": time.process_time() - began}


def _alarm(seconds: float) -> None:
    """Ends this process after so much computing; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _memory_limit() -> Callable[[int], object]:
    """Sets what may be taken beyond what the interpreter has, for a frame of so many bytes."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # watched from outside then
        return lambda n_bytes: None
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]

    def limit(n_bytes: int) -> None:
        soft = used + bounds.memory(n_bytes)
        within = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_AS, (within, hard))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return limit
