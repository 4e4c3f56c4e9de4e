"""The same prompts answered again and again while a run goes on, under what trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from wgtrain.data import Dataset, Tokenizer
from wgtrain.data.prompts import Prompt, as_prompts, row_prompts
from wgtrain.engine.linear import Adapter
from wgtrain.engine.plan import Plan
from wgtrain.errors import OptionError
from wgtrain.gpu import Device
from wgtrain.infer.cached import CachedSession
from wgtrain.infer.generation import Request, Row, generate
from wgtrain.infer.places import Places
from wgtrain.infer.prompting import Prompter
from wgtrain.model.base import Base
from wgtrain.turn import Turn

MAX_TOKENS = 64  # of an answer


def sample_prompts(
    texts: Sequence[str], rows: Dataset, valid: Dataset | None, tokenizer: Tokenizer
) -> list[Prompt]:
    """The prompts that a run answers: `texts`, as a user's messages where the conversations of
    `rows` went through a chat template, else as they stand; without any those of the first rows of
    `valid`.
    """
    if not texts:
        return as_prompts(default_prompts(valid), tokenizer)
    if rows.templating is None:
        encoded = [tokenizer.encode(text, bos=tokenizer.add_bos, special=True) for text in texts]
    else:
        prompter = Prompter(tokenizer, rows.templating)
        try:
            encoded = [prompter.prompt([{"role": "user", "content": text}]) for text in texts]
        finally:
            prompter.close()
    return [Prompt(text, tuple(ids)) for text, ids in zip(texts, encoded, strict=True)]


def default_prompts(valid: Dataset | None) -> list[list[int]]:
    """Those of validation rows; OptionError where there are none."""
    if valid is None:
        raise OptionError(
            "sample_every: there are no validation rows to take prompts from; --sample PROMPT (in "
            "Python sample=[...]) names one"
        )
    return row_prompts(valid)


def plan_samples(
    base: Base, beside: Mapping[str, tuple[Adapter, ...]], lengths: Sequence[int]
) -> Plan:
    """The memory that answers to prompts of so many tokens take; nothing is allocated."""
    return _session(None, base, beside, lengths).plan


def _session(
    device: Device | None,
    base: Base,
    beside: Mapping[str, tuple[Adapter, ...]],
    lengths: Sequence[int],
) -> CachedSession:
    return CachedSession(device, base, beside, len(lengths), max(lengths) + MAX_TOKENS)


class Samples:
    """Greedy answers to prompts, all at once, under what stands `beside` the linears; whoever owns
    that has it on the GPU, and may change it between two calls of `answers`.
    """

    def __init__(
        self,
        device: Device,
        base: Base,
        beside: Mapping[str, tuple[Adapter, ...]],
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
    ):
        self._prompts, self._tokenizer = prompts, tokenizer
        self._session = _session(device, base, beside, [len(ids) for ids in prompts])
        self._turn = Turn("samples")
        # Within the model's context, unless its prompt is beyond it, as training's rows may be.
        left = [base.config.context - len(ids) for ids in prompts]
        self._most = [min(MAX_TOKENS, n) if n > 0 else MAX_TOKENS for n in left]

    async def open(self) -> None:
        """Allocates and compiles; OutOfMemoryError where it does not fit."""
        await self._session.open()

    async def answers(self) -> list[str]:
        """The answers as the model stands now, in the order of the prompts."""
        session = self._session
        for place in range(session.places):  # read by a model that has learnt since
            session.truncate(place, 0)
        places = Places(b"", session)

        async def seats(*wanted: Any) -> Places:
            return places

        rows = [
            Row(i, Request(ids, most), list(ids), self._tokenizer, session.room)
            for i, (ids, most) in enumerate(zip(self._prompts, self._most, strict=True))
        ]
        found = [""] * len(rows)
        async for piece in generate(seats, self._turn, rows):
            found[piece.index] += piece.text
        return found

    def close(self) -> None:
        """Frees the memory."""
        self._session.close()
