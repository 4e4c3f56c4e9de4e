"""Every error a person can cause, and every failure of a GPU, as one small family.

Faces turn these into exit codes: `DeviceError` and what derives from it is 3, the others are 2.
"""


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
