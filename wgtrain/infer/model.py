"""A base model on the GPU: what training, evaluation and generation start from."""

import operator
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np

from wgtrain.data import Dataset
from wgtrain.data.prompts import Prompt
from wgtrain.data.templates import Templating
from wgtrain.data.tokenizer import Tokenizer, load_tokenizer
from wgtrain.dual import aio_view, dual, dual_iterator
from wgtrain.engine.linear import Adapter as Beside
from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, Adapter
from wgtrain.files.adapters import fitted
from wgtrain.files.source import shown
from wgtrain.gpu import Device
from wgtrain.infer.adapters import Adapters
from wgtrain.infer.cached import Sequences
from wgtrain.infer.evaluation import (
    EvalResult,
    Evaluated,
    check_rows,
    evaluate_rows,
    evaluator_for,
)
from wgtrain.infer.generation import (
    Piece,
    Request,
    Row,
    as_texts,
    checked_requests,
    generate,
)
from wgtrain.infer.kept import Kept
from wgtrain.infer.prompting import Prompter
from wgtrain.infer.samples import Samples, plan_samples, sample_prompts
from wgtrain.infer.sampling import Sampling
from wgtrain.infer.session import Session
from wgtrain.infer.stack import Checked, Stack, check_adapter
from wgtrain.model.base import Base, base_name
from wgtrain.model.host import NOWHERE, Host, unseen
from wgtrain.turn import Turn

AdapterLike = Any  # an Adapter, the bytes of an adapter GGUF, or what the face's reader takes


class Model:
    """Frozen weights on a device. A context manager; `close` gives the GPU memory back.

    `fingerprint`: SHA-256, hex, of everything before the tensors, the file's size, and the first
    and last MiB of tensor data. `precision`: "f32" or "f16", of products with its weights.
    `adapters`: those that requests run under which bring none of their own; none at first.
    """

    aio = aio_view()

    def __init__(
        self,
        gguf: GGUF,
        base: Base,
        device: Device,
        fingerprint: str,
        host: Host = NOWHERE,
        no_tokenizer: str | None = None,
        precision: str = "f32",
        quantize_base: str | None = None,
    ):
        self.gguf, self.base, self.device = gguf, base, device
        self.config, self.weights = base.config, base.weights
        self.fingerprint, self.precision = fingerprint, precision
        self.quantize_base = quantize_base
        self.name = gguf.name
        self.host = host
        self._no_tokenizer = no_tokenizer
        self._tokenizer: Tokenizer | None = None
        self._templating: Templating | None = None
        self._prompter: Prompter | None = None
        self._turn = Turn("this model")
        self._kept = Kept(device, base)
        slots = self._kept.slots
        self.adapters = Adapters(self._check_adapter, slots.drop, slots.close, self._turn)

    def __repr__(self) -> str:
        config = self.config
        return f"<Model {self.name}: {config.architecture}, {config.n_layer} blocks>"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file's own metadata; FileError where there is none."""
        if self._no_tokenizer is not None:
            raise FileError(self._no_tokenizer)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.gguf.metadata, self.name, self.host.say)
        return self._tokenizer

    @property
    def base_name(self) -> str | None:
        """The repository this model came from, where the file says so."""
        return base_name(self.gguf)

    def read_adapter(self, adapter: AdapterLike) -> Adapter:
        """What a person names as an adapter for this model, read."""
        return fitted(self.host.read_adapter(adapter, self.config), self.gguf.tensors)

    def _check_adapter(self, adapter: AdapterLike) -> Checked:
        if isinstance(adapter, Checked):
            if adapter.model == self.fingerprint:
                return adapter
            adapter = adapter.adapter
        name = str(adapter) if isinstance(adapter, str | os.PathLike) else "adapter"
        read, arch = self.read_adapter(adapter), self.config.architecture
        return check_adapter(read, self.gguf, arch, name, self.fingerprint)

    def sample_prompts(
        self, texts: Sequence[str], rows: Dataset, valid: Dataset | None
    ) -> list[Prompt]:
        """The prompts that a run on these rows answers; see `infer.samples`."""
        return sample_prompts(texts, rows, valid, self.tokenizer)

    plan_samples = staticmethod(plan_samples)

    def answering(
        self, beside: Mapping[str, tuple[Beside, ...]], prompts: Sequence[Sequence[int]]
    ) -> Samples:
        """What answers prompts under what stands beside the linears."""
        return Samples(self.device, self.base, beside, prompts, self.tokenizer)

    @dual
    async def logits(
        self, tokens: Sequence[int], adapters: Sequence[tuple[AdapterLike, float]] | None = None
    ) -> np.ndarray:
        """Logits after each token, float32 (T, V), under `adapters`, (adapter, strength) pairs with
        1.0 = as trained; None = the model's own stack, [] = the bare base.
        """
        ids, stack = self.check_tokens(tokens), self.stack(adapters)
        with self._turn(wait=True):
            session = await self.session(stack, len(ids))
            return await session.logits([ids])

    @dual
    async def evaluate(
        self,
        rows: Dataset,
        adapters: Sequence[tuple[AdapterLike, float]] | None = None,
        batch_size: int = 4,
        progress: Evaluated = unseen,
    ) -> EvalResult:
        """The loss of the rows' trained tokens, as training and its validation tell it;
        `adapters` as for `logits`. `progress(done, total)` is called with rows.
        """
        check_rows(rows, batch_size, self.config.vocabulary)
        stack = self.stack(adapters)
        with self._turn(wait=True):
            evaluator = await self._kept.made(
                stack,
                lambda beside: evaluator_for(
                    self.device, self.base, beside, rows.rows, batch_size, self.host
                ),
            )
            try:
                return await evaluate_rows(evaluator, rows.rows, batch_size, progress, rows.name)
            finally:
                evaluator.close()

    @dual_iterator
    async def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        adapters: Sequence[tuple[AdapterLike, float]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> AsyncGenerator[str, None]:
        """Pieces of the text that follows `prompt`, without it, until the model stops, a string of
        `stop` comes up, or `max_tokens` are made (None: 256, or what the context has room for).

        A text is continued as it stands. Messages, [{"role": "user", "content": "..."}, ...], go
        through the model's chat template, with `template_args` and `system` as `prompt` takes them,
        and are answered; thoughts before the answer are left out, `answers` has them. `Sampling`
        says how tokens are drawn; by default the likeliest one is taken. `adapters`: (adapter,
        strength) pairs for this answer; None = the model's own stack, [] = the bare base.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        ids = self._ids(prompt, template_args, system)
        request = Request(ids, max_tokens, sampling, as_texts(stop))
        async with aclosing(self._answers([request], adapters)) as pieces:
            async for piece in pieces:
                if piece.text and not piece.thought:
                    yield piece.text

    @dual_iterator
    async def answers(
        self,
        requests: Sequence[Request],
        adapters: Sequence[tuple[AdapterLike, float]] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answers to several requests, which run at the same time as far as memory
        goes; each is what it would be alone. `adapters` as for `generate`.
        """
        async with aclosing(self._answers(requests, adapters)) as pieces:
            async for piece in pieces:
                yield piece

    @dual
    async def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        adapters: Sequence[tuple[AdapterLike, float]] | None = None,
    ) -> list[list[int]]:
        """Greedy continuations of all prompts at once, ids without prompts and stop tokens."""
        made: list[list[int]] = [[] for _ in prompts]
        requests = [Request(prompt, max_tokens) for prompt in prompts]
        async for piece in self._answers(requests, adapters):
            made[piece.index] += [token.id for token in piece.tokens]
        return made

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template_args: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> list[int]:
        """The tokens of a conversation by the chat template, up to where the assistant's answer
        begins.

        `tools`: descriptions for the template; `template_args`: more variables for it; `system`
        "merge" puts system texts in front of the user's next turn, "keep" does not (None: as
        `templating` says). Special tokens written in messages stay text. OptionError where there is
        no template or a message is wrong, FileError where the template refuses it.
        """
        if self._prompter is None:
            self._prompter = Prompter(self.tokenizer, self._templating)
        return self._prompter.prompt(messages, tools, template_args, system)

    @property
    def templating(self) -> Templating | None:
        """What goes in the place of the model's own chat template; None = that."""
        return self._templating

    @templating.setter
    def templating(self, templating: Templating | None) -> None:
        self._drop_prompter()
        self._templating = templating

    def _drop_prompter(self) -> None:
        if self._prompter is not None:
            self._prompter.close()
        self._prompter = None

    def _ids(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any] | None,
        system: str | None,
    ) -> Sequence[int]:
        """The tokens of a text, or of messages."""
        if not isinstance(prompt, str):
            return self.prompt(prompt, None, template_args, system)
        for name, value in (("template_args", template_args), ("system", system)):
            if value is not None:
                raise OptionError(f"{name} = {shown(value)}: a text goes through no chat template")
        tokenizer = self.tokenizer
        return tokenizer.encode(prompt, bos=tokenizer.add_bos, special=True)

    def _answers(
        self,
        requests: Sequence[Request],
        adapters: Sequence[tuple[AdapterLike, float]] | None,
    ) -> AsyncGenerator[Piece, None]:
        """The answers, under adapters that are read once."""
        stack, tokenizer, context = self.stack(adapters), self.tokenizer, self.config.context
        rows = [
            Row(i, request, self.check_tokens(request.prompt), tokenizer, context)
            for i, request in enumerate(checked_requests(requests))
        ]
        return generate(partial(self._kept.places_for, self.host, stack), self._turn, rows)

    def check_tokens(self, tokens: Sequence[int]) -> list[int]:
        """The ids as plain integers; OptionError for none at all or one outside the vocabulary."""
        try:
            ids = [operator.index(token) for token in tokens]
        except TypeError:
            raise OptionError(
                f"tokens: {shown(tokens)}: a list of whole numbers is needed"
            ) from None
        wrong = [token for token in ids if not 0 <= token < self.config.vocabulary]
        if wrong or not ids:
            what = f"id {wrong[0]}" if wrong else "an empty list"
            raise OptionError(
                f"tokens: {what}; ids from 0 to {self.config.vocabulary - 1} are needed"
            )
        return ids

    def stack(self, adapters: Sequence[tuple[AdapterLike, float]] | Stack | None) -> Stack:
        """The (adapter, strength) pairs read and checked, for `session`; None = the model's own."""
        return self.adapters.of(adapters)

    async def session(self, stack: Stack, max_tokens: int) -> Session:
        """A session for at least `max_tokens` tokens, with the kernels that the host knows for it,
        that runs under this stack until the next call; the last one is kept and reused.
        """
        return await self._kept.session_for(stack, max_tokens, self.host)

    async def sequences(self, stack: Stack, places: int, room: int) -> Sequences:
        """`places` rows of up to `room` tokens, which are read under this stack until the next call
        of this or of `session`; whoever opens them closes them.
        """
        return await self._kept.sequences(stack, places, room, self.host)

    def clear_cache(self) -> None:
        """Gives back what is kept for the next request: rows that were read, and the programs of
        `logits`; they are made again when they are asked for.
        """
        with self._turn(wait=True):
            self._kept.drop()

    def close(self) -> None:
        """Gives all GPU memory back; the model cannot be used afterwards. What another thread asks
        of it is waited for.
        """
        if not self._turn.close("the model was closed"):
            return
        self._drop_prompter()
        self._kept.close()
        for storage in self.weights.storages:  # a handle keeps the platform's device alive
            storage.buffer = None
        self.device.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
