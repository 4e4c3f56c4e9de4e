"""The side of another trainer's process: it is given a shape, then asked for steps.

A job is a line of JSON on standard input, each further line a number of steps; each is answered by
a line of JSON on what was standard output. Everything a library prints goes to standard error.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from wgtrain.bench.measure import peak_memory
from wgtrain.bench.shapes import Shape

LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0  # of every step of every trainer


class Stepper(Protocol):
    """A trainer that is ready: `about` is what a record says of it."""

    about: dict[str, Any]

    def steps(self, count: int) -> dict[str, float]:
        """Runs whole steps until their losses are known: "seconds" of one, "loss" and "grad_norm"
        of the first.
        """


def serve(opened: Callable[[Shape, dict[str, Any]], Stepper]) -> None:
    """Answers until standard input ends."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def say(**answer: Any) -> None:
            print(json.dumps(answer), file=out, flush=True)

        job = json.loads(sys.stdin.readline())
        try:
            trainer = opened(Shape(**job.pop("shape")), job)
            say(about=trainer.about)
            for line in sys.stdin:
                say(**trainer.steps(int(line)), peak_memory=peak_memory())
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
            raise
