"""Messages that a person types, or that come through a pipe."""

import contextlib
import select
import sys
from typing import Any

from wgtrain.errors import FileError

_FIRST, _MORE = "> ", ". "
_PASTE_SECONDS = 0.02  # in which the next line of a pasted text comes


class Lines:
    """Standard input, message by message. A backslash at its end makes a line go on in the next
    one; in a terminal lines can be edited, and a pasted text is one message.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdin is not None and sys.stdin.isatty()
        self._readline: Any = None
        self._pastes = False
        self._held: str | None = None
        if self.terminal and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                self._pastes = "libedit" not in (readline.__doc__ or "")
                if self._pastes:
                    readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str | None:
        """The next message, None at the end. KeyboardInterrupt for Ctrl-C on an empty line, which
        on any other drops what was typed.
        """
        while True:
            try:
                return self._message()
            except KeyboardInterrupt:
                if self.terminal:
                    self._next_line()
                if not self.terminal or not self._typed:
                    raise

    def confirm(self, question: str) -> bool:
        """What a person answers to a yes-or-no question. Where the next line of a pipe is neither,
        yes is meant, and it is the next message.
        """
        while True:
            line = self._line(f"{question} [y/n] ")
            word = (line or "n").strip().lower()
            if word in ("y", "yes", "n", "no"):
                return word.startswith("y")
            if not self.terminal:
                self._held = line
                return True

    def _message(self) -> str | None:
        self._typed = False
        line = self._line(_FIRST)
        if line is None:
            return None
        parts = [line]
        while parts[-1].endswith("\\") or self._is_pasted():
            self._typed = True
            parts[-1] = parts[-1].removesuffix("\\")
            following = self._line(_MORE)
            if following is None:
                break
            parts.append(following)
        return "\n".join(parts)

    def _line(self, prompt: str) -> str | None:
        if self._held is not None:
            line, self._held = self._held, None
            return line
        if not self.terminal:
            return self._piped()
        try:
            if sys.stdout.isatty():
                return input(prompt)
            print(prompt, end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            if not self._pastes:  # else the editor has done so
                self._next_line()
            return None
        except KeyboardInterrupt:
            self._typed = self._typed or bool(self._readline and self._readline.get_line_buffer())
            raise

    def _piped(self) -> str | None:
        raw = sys.stdin.buffer.readline()
        try:
            return raw.decode().rstrip("\r\n") if raw else None
        except UnicodeDecodeError as error:
            raise FileError(f"standard input: no valid UTF-8 at byte {error.start}") from None

    def _is_pasted(self) -> bool:
        """Whether another line is there at once, which no hand typed."""
        if not self.terminal or self._pastes or sys.platform == "win32":
            return False
        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])

    @staticmethod
    def _next_line() -> None:
        print(file=sys.stderr, flush=True)
