"""How a person, a terminal or a system ends a run early."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wgtrain.train.trainer import Trainer

STOPPING = "stopping after this step, then saving; again to stop at once"
# A terminal that is closed hangs up; Windows has a break instead.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]


@contextmanager
def stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """A signal stops the trainer after the steps in flight, and says so; a second Ctrl-C at once.

    A signal that was ignored at the start (`nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError):  # by descriptor: a stream may be in the middle of a line
            os.write(2, f"\n{STOPPING}\n".encode())

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
