"""Devices that share what is expensive, a real one and its compiled kernels, and own the rest."""

import copy
from typing import Any

from wgtrain.gpu.base import CLOSED
from wgtrain.gpu.native import NativeDevice


class Borrowed(NativeDevice):
    """Has buffers of its own and counts them; closing it frees these and no more."""

    def close(self) -> None:
        if not self._gone:
            self._gone = CLOSED
            self._pipelines = {}
            self._drop_all()


def borrow(lender: NativeDevice) -> Any:
    """A device on the same GPUDevice as `lender`, which has to outlive it."""
    made = copy.copy(lender)
    made.__class__ = Borrowed
    made._buffers, made._after = {}, []
    return made
