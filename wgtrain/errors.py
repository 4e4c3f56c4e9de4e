"""Every error a person can cause, and every failure of a GPU, as one small family.

Faces turn these into exit codes: `DeviceError` and what derives from it is 3, the others are 2.
"""

import re

# All that moves a cursor, sets a colour or turns the direction of writing; not \t and \n.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text for a screen, with control characters escaped: it may quote a stranger's file."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class WgtrainError(Exception):
    """Base of all errors of this package; its text is meant for people."""


class FileError(WgtrainError):
    """A model, data set, adapter or checkpoint that cannot be used; names the file and the place
    in it.
    """


class OptionError(WgtrainError):
    """A setting that is unknown, out of range or impossible together with another one."""


class NonFiniteError(WgtrainError):
    """Loss or gradient became infinite or not a number; names the step and the rows."""


class DeviceError(WgtrainError):
    """No usable GPU, or the GPU failed."""


class ShaderError(DeviceError):
    """A kernel did not compile; names the kernel, the line and the compiler's message."""


class OutOfMemoryError(DeviceError):
    """The work does not fit into the adapter's memory or limits."""


class DeviceLostError(DeviceError):
    """The device, or what was on it, went away: driver reset, unplugged, closed, freed."""
