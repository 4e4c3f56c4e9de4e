"""`wgtrain chat`: a conversation with a model, in a terminal or through a pipe."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click

from wgtrain.cli.answering import Answer, How, Screen, answer_options, read_how
from wgtrain.cli.conversation import Conversation
from wgtrain.cli.lines import Lines
from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, Using, opened, using_options
from wgtrain.errors import DeviceError, OptionError, WgtrainError
from wgtrain.infer.generation import MAX_TOKENS, Request, room_for
from wgtrain.runs.adapter_config import load_adapters
from wgtrain.runs.adapters import adapter_path, parse_adapter

DONE, INTERRUPTED = 0, 130
_HELP = """\
/reset               forget the conversation, but for the system message
/undo                forget the last exchange
/retry               ask the last message again, with the next seed
/more                go on with an answer that was cut
/system [TEXT]       show the system message, or replace it; none = without
/adapter             list the adapters
/adapter A[:SCALE]   load one: a GGUF, a PEFT folder, a run or a checkpoint
/adapter NAME:SCALE  give a loaded one another scale; its path does, too
/adapter -NAME       remove one; /adapter none removes all
/save FILE           add the conversation to a JSONL file, as a row for wgtrain train
/help                show this
/quit                end, as Ctrl-D does
A line that ends with a backslash goes on in the next one. Ctrl-C stops an answer; on an empty
line it ends the conversation."""
_ALIASES = {"exit": "quit", "bye": "quit", "clear": "reset", "regen": "retry", "?": "help"}
_MORE = "/more goes on"
_SHOWN = 60  # characters of a message that is named


@click.command("chat", cls=Sectioned, short_help="Talk with a model and adapters.")
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@answer_options
@click.option("--stats", is_flag=True, help="Tell tokens, speed and end of each answer.")
@using_options
def command(**given: Any) -> int:
    """Talk with a model, through its chat template; /help lists what can be done meanwhile.

    \b
      wgtrain chat --adapter runs/mine

    Through a pipe each line is a message, and each answer, without its thoughts, is followed by a
    line end; errors end the conversation there.
    """
    how = read_how(given)
    conversation = Conversation(given["system"] or "")
    lines = Lines()  # before a GPU is opened: some drivers bring another line editor's functions
    with opened(given) as using:
        using.check_template()
        try:
            return Chat(using, how, conversation, lines, given["stats"]).run()
        except BrokenPipeError:  # whoever reads it has enough
            return DONE


class Chat:
    """A conversation, the person in it, and the model."""

    def __init__(
        self, using: Using, how: How, conversation: Conversation, lines: Lines, stats: bool
    ):
        self._using, self._how, self._stats = using, how, stats
        self._said, self._lines, self._screen = conversation, lines, Screen()
        self._context = using.model.config.context
        self._seed = how.sampling.seed
        self._cut: list[int] | None = None  # the tokens up to where the last answer was cut
        self._ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "reset": self._reset,
            "undo": self._undo,
            "retry": self._retry,
            "more": self._more,
            "system": self._system,
            "adapter": self._adapter,
            "save": self._save,
            "help": self._help,
            "quit": self._quit,
        }

    def run(self) -> int:
        """Until the person ends it."""
        if self._lines.terminal:
            self._adapters(f"{self._using.model.name}; /help lists commands, Ctrl-D ends\n")
        while not self._ended:
            try:
                line = self._lines.read()
            except KeyboardInterrupt:
                return INTERRUPTED
            if line is None:
                break
            try:
                self._take(line)
            except DeviceError:
                raise
            except WgtrainError as error:
                if not self._lines.terminal:
                    raise
                complain(f"error: {error}")
        return DONE

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._answer(line)
            return
        word, _, rest = line[1:].partition(" ")
        run = self._commands.get(_ALIASES.get(word, word))
        if run is None:
            raise OptionError(
                f"/{word} is no command; /help lists them. A blank before it sends it to the model"
            )
        run(rest.strip())

    # ---- answers -------------------------------------------------------------------------------

    def _answer(self, question: str) -> bool:
        """Answers a message, as far as nobody stops it, and keeps both; False for no answer."""
        ids = self._fitted(question)
        if ids is None:
            return False
        answer = self._drawn(ids)
        kept = bool(answer.text) or answer.finish is not None
        if kept:
            self._said.add(question, answer.text, answer.thoughts)
        return kept

    def _drawn(self, ids: list[int]) -> Answer:
        """What follows some tokens, shown as it comes until Ctrl-C."""
        room = min(self._how.max_tokens or MAX_TOKENS, self._context - len(ids))
        sampling = replace(self._how.sampling, seed=self._seed)
        answer = Answer(len(ids), self._context)
        self._cut = None
        pieces = self._using.model.answers([Request(ids, room, sampling, self._how.stop)])
        try:
            with _stoppable() as stopped:
                for piece in pieces:
                    answer.add(piece)
                    self._screen.show(piece)
                    if stopped():
                        break
        finally:
            pieces.close()
            self._screen.end(newline=True)
        if answer.finish != "stop" and len(ids) + len(answer.ids) < self._context:
            self._cut = [*ids, *answer.ids]
        if self._stats:
            complain(answer.told(_MORE))
        elif self._lines.terminal and answer.finish != "stop":
            complain(answer.ending(_MORE))
        return answer

    def _more(self, _: str) -> None:
        if self._cut is None or not self._said.exchanges:
            raise OptionError("/more: no answer was cut that has room to go on")
        answer = self._drawn(self._cut)
        self._said.extend(answer.text, answer.thoughts)

    def _fitted(self, question: str) -> list[int] | None:
        """The tokens of the conversation with a question, once there is room for the answer; None
        where the person would rather not send it.
        """
        wanted = self._how.max_tokens or min(MAX_TOKENS, self._context // 4)
        while True:
            ids = self._using.prompt(self._said.messages(question))
            left = self._context - len(ids)
            if left >= wanted:
                return ids
            if not self._said.exchanges:
                room_for(len(ids), None, self._context)  # raises where there is none
                return ids
            complain(
                f"the conversation takes {len(ids):,} tokens of the model's context of "
                f"{self._context:,}, and leaves {max(left, 0):,} for the answer"
            )
            if self._lines.confirm("Drop the oldest exchange?"):
                complain(f"dropped: {self._said.drop_oldest()[:_SHOWN]}")
            elif left > 0:
                return ids
            else:
                complain("the message is not sent; /undo drops the last exchange, /reset all")
                return None

    # ---- commands ------------------------------------------------------------------------------

    def _reset(self, _: str) -> None:
        self._said.exchanges.clear()
        self._cut = None
        complain("the conversation begins anew")

    def _undo(self, _: str) -> None:
        complain(f"forgotten: {self._last()[:_SHOWN]}")

    def _retry(self, _: str) -> None:
        if self._how.sampling.temperature == 0:
            complain("--temperature is 0: the answer will be the same")
        before = [*self._said.exchanges]
        question = self._last()
        self._seed += 1
        answered = False
        try:
            answered = self._answer(question)
        finally:
            if not answered:
                self._said.exchanges[:] = before

    def _last(self) -> str:
        question, self._cut = self._said.undo(), None
        if question is None:
            raise OptionError("nothing was said yet")
        return question

    def _system(self, text: str) -> None:
        if text:
            self._said.system = "" if text == "none" else text
        complain(f"system message: {self._said.system or 'none'}")

    def _adapter(self, text: str) -> None:
        adapters = self._using.model.adapters
        if text == "none":
            adapters.clear()
        elif text.startswith("-"):
            adapters.remove(text[1:])
        elif text:
            named = parse_adapter(os.path.expanduser(text))
            if (name := self._loaded(named.path)) is not None:
                adapters.rescale(name, named.scale)
            else:
                load_adapters(self._using.model, [named], False, complain)
        self._adapters()

    def _loaded(self, named: str) -> str | None:
        """The name of the adapter that is loaded and meant by its name, or by a path to it."""
        adapters = self._using.model.adapters
        if named in adapters:
            return named
        key = adapters.read(adapter_path(named)).key
        stacked = zip(adapters, adapters.stack.adapters, strict=True)
        return next((name for (name, _), (one, _) in stacked if one.key == key), None)

    def _adapters(self, first: str = "") -> None:
        listed = [f"{name} at {scale:g}" for name, scale in self._using.model.adapters]
        complain(f"{first}adapters: {', '.join(listed) or 'none'}")

    def _save(self, path: str) -> None:
        if not path:
            raise OptionError("/save: the name of a file is needed")
        rows = self._said.save(path)
        complain(f"{path}: {rows} {'row' if rows == 1 else 'rows'}")

    def _help(self, _: str) -> None:
        complain(_HELP)

    def _quit(self, _: str) -> None:
        self._ended = True


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, asked between pieces; the second time it ends all."""
    pressed: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if pressed:
            signal.default_int_handler(number, frame)
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
