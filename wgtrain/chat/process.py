"""The parent's side of the process that runs a chat template: started, asked, watched and ended."""

import os
import signal
import subprocess
import sys
import threading
import weakref
from bisect import bisect_right
from collections import deque
from contextlib import suppress
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from wgtrain.chat import bounds, frames
from wgtrain.errors import FileError

# Not `-m`, which would need folders in the environment: their names may hold a ":".
_CODE = "import sys; sys.path += sys.argv[1:]; from wgtrain.chat.child import main; main()"
# Nobody else's code runs there, whatever lies in site-packages or in the working folder.
_FLAGS = ("-P", "-s", "-S", "-B")
# On Windows an environment's own is a launcher, which would be watched instead of Python.
_PYTHON = getattr(sys, "_base_executable", "") if sys.platform == "win32" else sys.executable
_WATCHED = sys.platform != "linux"
_PACKAGES = ("wgtrain", "jinja2", "markupsafe")
_FRAME = 1 << 20  # bytes, or one row
_GLANCE = 0.05  # s between two looks at it while it is waited for

Sent = tuple[bytes, int]  # a frame, and the number of answers it will have


class Process:
    """Python in a process of its own, which runs the template of some settings for each row sent.

    At a bound, and at whatever is raised while it is waited for, Ctrl-C above all, it is ended.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        if getattr(sys, "frozen", False):  # it would start the whole program again
            raise FileError("a chat template needs Python itself, this is a frozen program")
        command = [_PYTHON, *_FLAGS, "-c", _CODE, *_folders()]
        apart: dict[str, Any] = {"process_group": 0}  # a terminal's Ctrl-C is the parent's
        if sys.platform == "win32":
            apart = {"creationflags": 0x200 | 0x8000000}  # a group of its own, no window
        try:
            popen = subprocess.Popen(
                command,
                env=_environment(),
                cwd=Path(_folders()[0]).anchor,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=_FRAME,
                **apart,
            )
        except (OSError, TypeError, ValueError) as error:
            what = f"{_PYTHON!r} does not start: {error}"
            raise FileError(f"a chat template needs a process of its own; {what}") from error
        self._popen = popen
        self._due: deque[tuple[float, int]] = deque()
        self._inbox: SimpleQueue[Sent | None] = SimpleQueue()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        arguments = (popen, self._inbox, self._outbox)
        thread = threading.Thread(target=_exchange, args=arguments, daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _end, popen, self._inbox, thread)
        self._watch = Watch(popen.pid) if _WATCHED else None
        self._send(frames.encode(settings), [bounds.COMPILING])
        found = self.receive()
        if "error" in found:
            self.close()
            raise FileError(found["error"])
        self.variables: list[str] = found["variables"]

    def send(self, rows: list[str]) -> None:
        """Hands over rows as JSON, in frames of about a MiB."""
        while rows:
            sizes = list(accumulate(map(len, rows)))
            n = max(1, bisect_right(sizes, _FRAME))
            some, rows = rows[:n], rows[n:]
            self._send(frames.encode_rows(some), [bounds.row_seconds(len(row)) for row in some])

    def _send(self, frame: bytes, seconds: list[float]) -> None:
        self._due += [(one, len(frame)) for one in seconds]
        self._inbox.put((frame, len(seconds)))

    def receive(self) -> Any:
        """The answer to the next row, with the `seconds` it took; FileError at a bound."""
        seconds, n_bytes = self._due.popleft()
        try:
            found = self._wait(seconds, n_bytes)
            if found is None:
                code = self._popen.wait()
                if code == -getattr(signal, "SIGPROF", 0) != 0:
                    raise bounds.too_slow(seconds)
                raise FileError(f"the chat template broke the process it runs in ({code})")
        except BaseException:
            self.close()
            raise
        return found

    def _wait(self, seconds: float, n_bytes: int) -> Any:
        before = None
        # Looks are counted, not the clock: a machine that slept has not computed.
        for _ in range(int(bounds.PATIENCE * seconds / _GLANCE)):
            try:
                return self._outbox.get(timeout=_GLANCE)
            except Empty:
                if self._watch is None:
                    continue
            used, memory = self._watch.used()
            before = used if before is None else before
            if used > before + seconds:
                break
            if memory > bounds.memory(n_bytes):
                raise bounds.too_large()
        raise bounds.too_slow(seconds)


class Watch:
    """What a process uses, seen from outside: where the system does not keep it to its limits."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._process, self._gone = psutil.Process(pid), psutil.Error

    def used(self) -> tuple[float, int]:
        """Computing time in s and memory in bytes; 0 once it is gone."""
        try:
            times = self._process.cpu_times()
            return times.user + times.system, self._process.memory_info().rss
        except self._gone:
            return 0.0, 0


def _folders() -> list[str]:
    """Where the packages lie that the process needs."""
    found = [find_spec(name) for name in _PACKAGES]
    files = [os.path.abspath(spec.origin) for spec in found if spec and spec.origin]
    return list(dict.fromkeys(os.path.dirname(os.path.dirname(file)) for file in files))


def _environment() -> dict[str, str]:
    """Without Python's variables, but for the one that tells where it lies."""
    home = set() if sys.flags.ignore_environment else {"PYTHONHOME"}
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") or k in home}


def _exchange(
    popen: "subprocess.Popen[bytes]", inbox: SimpleQueue[Sent | None], outbox: SimpleQueue[Any]
) -> None:
    """Writes each frame and reads its answers, as a thread; None says that the process ended."""
    assert popen.stdin is not None and popen.stdout is not None
    try:
        while (sent := inbox.get()) is not None:
            popen.stdin.write(sent[0])
            popen.stdin.flush()
            for _ in range(sent[1]):
                if (found := frames.read(popen.stdout)) is None:
                    return
                outbox.put(found)
    except (OSError, ValueError, MemoryError, RecursionError):  # a pipe that ended, or no JSON
        pass
    finally:
        outbox.put(None)


def _end(
    popen: "subprocess.Popen[bytes]", inbox: SimpleQueue[Sent | None], thread: threading.Thread
) -> None:
    popen.kill()
    popen.wait()
    inbox.put(None)
    if thread is not threading.current_thread():
        thread.join()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
