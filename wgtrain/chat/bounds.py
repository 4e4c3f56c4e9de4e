"""What a chat template may use, and the words that say it used more.

Computing time is the measure, not the clock's: a busy machine refuses nothing. Usual templates
need about 30 microseconds a message for each rendering.
"""

from wgtrain.errors import FileError

COMPILING = 1.0  # s for making code of the template
ROW, FILE, FILE_ROW = 1.0, 10.0, 0.05  # s a row; s a file, and for each of its rows
BYTE = 30e-6  # s more for each byte of a row
MEMORY, MEMORY_BYTE = 200 << 20, 64  # bytes of memory; and for each byte of what is rendered
PATIENCE = 20  # times the computing time, by the clock


def row_seconds(n_bytes: int) -> float:
    """Computing time that a row of so many bytes may take."""
    return ROW + BYTE * n_bytes


def memory(n_bytes: int) -> int:
    """Bytes of memory that may be taken for rows of so many bytes."""
    return MEMORY + MEMORY_BYTE * n_bytes


def too_slow(seconds: float) -> FileError:
    """A row, or the template itself, that took longer than it may."""
    return FileError(f"the chat template computes for more than {seconds:.1f} s")


def too_large() -> FileError:
    """Rows, or the template itself, that took more memory than they may."""
    what = f"{MEMORY >> 20} MiB and {MEMORY_BYTE} times the size of its rows"
    return FileError(f"the chat template needs more memory than {what}")


class Account:
    """The computing time of all rows of a file."""

    def __init__(self) -> None:
        self.spent, self.allowed = 0.0, FILE

    def charge(self, n_bytes: int, seconds: float) -> None:
        """Adds a row; FileError where the rows so far took longer than they may."""
        self.spent += seconds
        self.allowed += FILE_ROW + BYTE * n_bytes
        if self.spent > self.allowed:
            raise FileError(
                f"the chat template computes for {self.spent:.0f} s over the rows so far, "
                f"{self.allowed:.0f} s are allowed"
            )
