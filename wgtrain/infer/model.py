"""A base model on the GPU: what training, evaluation and generation start from."""

import codecs
import hashlib
import math
import operator
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from wgtrain.data.tokenizer import Tokenizer, load_tokenizer
from wgtrain.dual import aio_view, dual, dual_iterator
from wgtrain.engine.probe import find_subgroup_size
from wgtrain.engine.weight import PRECISIONS
from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, Adapter, adapter_fits, read_gguf, read_range
from wgtrain.files.source import Source, shown
from wgtrain.gpu import Device, open_device
from wgtrain.infer.decode import greedy
from wgtrain.infer.session import Session
from wgtrain.model.base import Base, base_on
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.model.folder import Folder
from wgtrain.model.host import NOWHERE, Host
from wgtrain.model.weights import Weights, check_precision, load_weights, plan_weights

AdapterLike = Any  # an Adapter, the bytes of an adapter GGUF, or what the face's reader takes
MAX_SCALE = 1e6  # of an adapter: strength * alpha / rank
_SAMPLE = 1 << 20  # bytes of tensor data at either end that the fingerprint covers


class Model:
    """Frozen weights on a device. A context manager; `close` gives the GPU memory back.

    `fingerprint`: SHA-256, hex, of everything before the tensors, the file's size, and the first
    and last MiB of tensor data. `precision`: "f32" or "f16", of products with its weights.
    """

    aio = aio_view()

    def __init__(
        self,
        gguf: GGUF,
        config: ModelConfig,
        weights: Weights,
        device: Device,
        fingerprint: str,
        host: Host = NOWHERE,
        no_tokenizer: str | None = None,
        precision: str = "f32",
    ):
        self.gguf, self.config, self.weights, self.device = gguf, config, weights, device
        self.fingerprint, self.precision = fingerprint, precision
        self.name = gguf.name
        self.host = host
        self._no_tokenizer = no_tokenizer
        self._tokenizer: Tokenizer | None = None
        self._session: tuple[Any, Session] | None = None

    @property
    def base(self) -> Base:
        """The model as plans see it."""
        return base_on(self.device, self.config, self.weights)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file's own metadata; FileError where there is none."""
        if self._no_tokenizer is not None:
            raise FileError(self._no_tokenizer)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.gguf.metadata, self.name)
        return self._tokenizer

    @property
    def base_name(self) -> str | None:
        """The repository this model came from, where the file says so."""
        for key in ("general.base_model.0.repo_url", "general.base_model.0.name"):
            value = self.gguf.metadata.get(key)
            if isinstance(value, str):
                return value
        return None

    def read_adapter(self, adapter: AdapterLike) -> Adapter:
        """What a person names as an adapter for this model, read."""
        return self.host.read_adapter(adapter, self.config)

    @dual
    async def logits(
        self, tokens: Sequence[int], adapters: Sequence[tuple[AdapterLike, float]] = ()
    ) -> np.ndarray:
        """Logits after each token, float32 (T, V); each adapter is (adapter, strength), 1.0 = as
        trained.
        """
        ids = self.check_tokens(tokens)
        session = await self.session(adapters, len(ids))
        return await session.logits([ids])

    @dual_iterator
    async def generate(
        self,
        prompt: str,
        max_tokens: int = 64,
        temperature: float = 0.0,
        adapters: Sequence[tuple[AdapterLike, float]] = (),
    ) -> AsyncGenerator[str, None]:
        """Pieces of the text that follows `prompt`, without it, until the model stops or
        `max_tokens`.

        Greedy: `temperature` other than 0 is refused.
        """
        if temperature != 0:
            raise OptionError(f"temperature = {temperature}: only 0 (greedy) is possible")
        tokenizer = self.tokenizer
        start = tokenizer.encode(prompt, bos=tokenizer.add_bos, special=True)
        tail = start[-1:]  # what stands before the answer decides whether a space opens it
        said = len(tokenizer.decode_bytes(tail, start=False))
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        async for tokens in greedy(self, [self.check_tokens(start)], max_tokens, adapters):
            tail += tokens.values()
            whole = tokenizer.decode_bytes(tail, start=False)
            if piece := characters.decode(whole[said:]):
                yield piece
            said = len(whole)
        if piece := characters.decode(b"", final=True):
            yield piece

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

    async def session(
        self, adapters: Sequence[tuple[AdapterLike, float]], max_tokens: int
    ) -> Session:
        """A session for these adapters and at least `max_tokens` tokens; the last one is kept and
        reused.
        """
        stack = [(self.read_adapter(adapter), strength) for adapter, strength in _pairs(adapters)]
        for adapter, _ in stack:
            adapter_fits(adapter, self.gguf.tensors, self.config.architecture)
        _check_strengths(stack)
        key = [(_digest(adapter), strength) for adapter, strength in stack]
        if self._session and self._session[0] == key and self._session[1].max_tokens >= max_tokens:
            return self._session[1]
        self._drop_session()
        size = max(64, 1 << (max_tokens - 1).bit_length())
        session = Session(self.device, self.config, self.weights, stack, size)
        await session.open()
        self._session = (key, session)
        return session

    def _drop_session(self) -> None:
        if self._session:
            self._session[1].close()
            self._session = None

    def close(self) -> None:
        """Gives all GPU memory back; the model cannot be used afterwards."""
        self._drop_session()
        for storage in self.weights.storages:  # a handle keeps the platform's device alive
            storage.buffer = None
        self.device.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pairs(adapters: Sequence[tuple[AdapterLike, float]]) -> list[tuple[AdapterLike, float]]:
    """The (adapter, strength) pairs; OptionError for what is none."""
    pairs = []
    for number, pair in enumerate(adapters):
        try:
            adapter, strength = pair
            if isinstance(pair, str) or not math.isfinite(strength):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise OptionError(
                f"adapters[{number}] = {shown(pair)}: (adapter, strength) is needed, as in "
                "('adapter.gguf', 1.0)"
            ) from None
        pairs.append((adapter, float(strength)))
    return pairs


def _check_strengths(stack: Sequence[tuple[Adapter, float]]) -> None:
    """OptionError for an adapter so strong that no logits are left."""
    for number, (adapter, strength) in enumerate(stack):
        if abs(strength * adapter.alpha / adapter.rank) > MAX_SCALE:
            raise OptionError(
                f"adapters[{number}]: strength {strength:g} x alpha {adapter.alpha:g} / rank "
                f"{adapter.rank} is beyond {MAX_SCALE:g}"
            )


def _digest(adapter: Adapter) -> bytes:
    digest = hashlib.blake2b(str((adapter.rank, adapter.alpha)).encode())
    for name, pair in adapter.tensors.items():
        digest.update(name.encode())
        for array in pair:
            digest.update(array.tobytes())
    return digest.digest()


async def _fingerprint(source: Source, gguf: GGUF) -> str:
    start = min(tensor.offset for tensor in gguf.tensors.values())
    digest = hashlib.sha256(str(source.size).encode())
    ranges = [(0, min(start + _SAMPLE, source.size)), (max(source.size - _SAMPLE, 0), source.size)]
    for first, last in ranges:
        for at in range(first, last, _SAMPLE):
            digest.update(await read_range(source, at, min(_SAMPLE, last - at)))
    return digest.hexdigest()


async def open_model(
    opened: Source | Folder,
    *,
    adapter_index: int | None = None,
    limits: str | None = None,
    budget: int | None = None,
    precision: str = "f32",
    host: Host = NOWHERE,
) -> Model:
    """Puts a GGUF's or folder's weights on a GPU; `gpu.open_device` says more on the options.

    `precision`: the operands of products with weights; "f16" needs a GPU with shader-f16.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision = {precision}: allowed is {' or '.join(PRECISIONS)}")
    if not isinstance(opened, Folder):
        opened = Folder(opened, await read_gguf(opened), None)
    source, gguf = opened.source, opened.gguf
    config = read_config(gguf)
    fingerprint = await _fingerprint(source, gguf)
    device = await open_device(adapter_index, limits=limits, budget=budget)
    try:
        check_precision(precision, device)
        await find_subgroup_size(device)
        weights = plan_weights(gguf, config, device.limits, precision)
        await load_weights(device, source, gguf, weights)
    except BaseException:
        device.close()
        raise
    return Model(gguf, config, weights, device, fingerprint, host, opened.no_tokenizer, precision)
