"""Errors in OpenAI's form."""

import re
from typing import Any

from wgtrain.errors import (
    DeviceError,
    NonFiniteError,
    OutOfMemoryError,
    WgtrainError,
    printable,
)

INVALID, FAILED = "invalid_request_error", "server_error"
_SETTING = re.compile(r"(\w+) = ")
# How requests spell settings of Python's and of the command line.
_SPELT = {"template_args": "chat_template_kwargs"}
_FIELD = re.compile(r"field '([^']+)'")


class Refused(Exception):
    """What a client is told in place of an answer: `param` is the field that is wrong."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: dict[str, str] | None = None,
        is_bug: bool = False,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind
        self.headers, self.is_bug = headers or {}, is_bug

    @property
    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def wrong_field(message: str, param: str) -> Refused:
    """A request's field holds what it may not."""
    return Refused(f"{param}: {message}", param=param)


def by_field(error: Exception, param: str | None = None) -> Refused:
    """The same of an error that names the field itself, or else is of `param`."""
    text = printable(str(error))
    for ours, theirs in _SPELT.items():
        text = re.sub(rf"\A{ours}\b", theirs, text)
    if found := _FIELD.search(text):
        return Refused(text, param=found[1])
    if found := _SETTING.match(text):
        return Refused(text, param=found[1])
    return Refused(text if param is None else f"{param}: {text}", param=param)


def refusal_of(error: Exception) -> Refused:
    """What a client is told of an error that came while its answer was made."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OutOfMemoryError):
        return Refused(str(error), 500, kind=FAILED, code="out_of_memory")
    if isinstance(error, DeviceError):
        return Refused(str(error), 500, kind=FAILED, code="gpu_failed")
    if isinstance(error, NonFiniteError):
        return Refused(str(error), 500, kind=FAILED, code="not_finite")
    if isinstance(error, WgtrainError):
        return by_field(error)
    return Refused("an error of the server; its log says more", 500, kind=FAILED, is_bug=True)
