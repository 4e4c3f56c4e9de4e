"""A rival for the tests of `wgtrain bench`: it does the work by numbers it is told."""

import os
import sys

from wgtrain.bench.child import serve


class Fake:
    """Answers what FAKE_RIVAL says: seconds, loss and gradient norm; or fails when that is none."""

    def __init__(self, shape, job):
        self.about = {"versions": {"fake": "1"}, "device": "none", "dtype": job["dtype"]}
        print("chatter on standard output")
        self.numbers = [float(x) for x in os.environ["FAKE_RIVAL"].split(",")]

    def steps(self, count):
        if os.environ.get("FAKE_RIVAL_DIES"):
            print("it broke", file=sys.stderr, flush=True)
            os._exit(7)
        return dict(zip(("seconds", "loss", "grad_norm"), self.numbers, strict=True))


if __name__ == "__main__":
    serve(Fake)
