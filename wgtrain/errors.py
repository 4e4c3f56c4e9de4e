"""Every error a person can cause, and every failure of a GPU, as one small family.

Faces turn these into exit codes: `DeviceError` and what derives from it is 3, the others are 2.
"""

import re

# Controls but tab and newline, what turns the direction of writing, separators of lines, halves
# of characters: a terminal would obey them, show another text than is there, or fail.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A text that may hold a stranger's, with escapes for what is not to reach a terminal."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class WgtrainError(Exception):
    """Base of all errors of this package; its text is meant for people, and `printable`."""

    def __str__(self) -> str:
        return printable(super().__str__())


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
