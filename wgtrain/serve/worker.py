"""What makes answers, in the thread of the line before the GPU."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.infer.generation import Piece, Request
from wgtrain.infer.model import Model
from wgtrain.serve.asked import Asked, Chat, Completion
from wgtrain.serve.line import Work
from wgtrain.serve.refusals import Refused, by_field, wrong_field
from wgtrain.serve.shelf import Entry, Shelf

Item = int | Piece  # the tokens of all prompts, then the pieces of the answers
Chosen = Sequence[tuple[Entry, float]]
_REFUSES = "the chat template refuses"


class Worker:
    """Answers by a model. `say` hears what a person should know."""

    def __init__(self, model: Model, shelf: Shelf, say: Callable[[str], None]):
        self._model, self._shelf, self._say = model, shelf, say
        self._merges = False  # system texts go before the user's turn: the template takes none

    def chat(self, asked: Chat, chosen: Chosen) -> Work[Item]:
        """What makes the answer to messages."""

        def work() -> Generator[Item, None, None]:
            yield from self._answers(asked, [self._prompt(asked)], chosen, "messages")

        return work

    def completion(self, asked: Completion, chosen: Chosen) -> Work[Item]:
        """What makes texts go on."""

        def work() -> Generator[Item, None, None]:
            prompts = [self._ids(prompt) for prompt in asked.prompts]
            yield from self._answers(asked, prompts, chosen, "prompt")

        return work

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            try:
                return self._model.check_tokens(prompt)
            except OptionError as error:
                raise by_field(error, "prompt") from None
        tokenizer = self._model.tokenizer
        return tokenizer.encode(prompt, bos=tokenizer.add_bos, special=True)

    def _prompt(self, asked: Chat) -> list[int]:
        """The tokens of a conversation."""
        templating = self._model.templating
        now = datetime.now().replace(microsecond=0)
        if templating is not None and templating.now.date() != now.date():
            self._model.templating = replace(templating, now=now)
        system = asked.system or ("merge" if self._merges else None)
        try:
            return self._rendered(asked, system)
        except FileError:
            if system is not None or all(m["role"] != "system" for m in asked.messages):
                raise
            try:
                ids = self._rendered(asked, "merge")
            except WgtrainError:
                ids = []
            if not ids:
                raise
        self._merges = True
        self._say("the chat template takes no system message: it goes before the user's turn")
        return ids

    def _rendered(self, asked: Chat, system: str | None) -> list[int]:
        model = self._model
        try:
            ids = model.prompt(asked.messages, asked.tools, asked.template_args, system)
            if asked.tools and ids == model.prompt(
                asked.messages, None, asked.template_args, system
            ):
                raise wrong_field("the chat template writes none of them", "tools")
            without = [_without_calls(message) for message in asked.messages]
            if without != asked.messages and ids == model.prompt(
                without, asked.tools, asked.template_args, system
            ):
                raise wrong_field("the chat template writes no tool_calls", "messages")
            return ids
        except FileError as error:
            if not str(error).startswith(_REFUSES):
                # What one conversation took too much of is not to be missing for the next.
                model.templating = model.templating
            raise

    def _answers(
        self, asked: Asked, prompts: Sequence[Sequence[int]], chosen: Chosen, param: str
    ) -> Generator[Item, None, None]:
        context = self._model.config.context
        requests = []
        for prompt in prompts:
            left = context - len(prompt)
            if left < 1:
                raise Refused(
                    f"the model's context is {context} tokens; {param} has {len(prompt)}, which "
                    "leaves no room for an answer",
                    param=param,
                    code="context_length_exceeded",
                )
            if not prompt:
                raise Refused(f"{param}: no tokens are in it", param=param)
            limit = left if asked.max_tokens is None else min(asked.max_tokens, left)
            requests.append(Request(prompt, limit, asked.sampling, asked.stop, asked.logprobs))
        adapters = self._shelf.load(chosen)
        yield sum(map(len, prompts))
        yield from self._model.answers(requests, adapters=adapters)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message that has tool_calls without them, others as they are."""
    if "tool_calls" not in message:
        return message
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": rest.get("content") or ""}
