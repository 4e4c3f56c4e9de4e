"""Putting a base model on a GPU."""

import hashlib
from contextlib import nullcontext

from wgtrain.engine.probe import find_subgroup_size
from wgtrain.engine.weight import PRECISIONS
from wgtrain.errors import OptionError
from wgtrain.files import GGUF, read_gguf, read_range
from wgtrain.files.source import Source
from wgtrain.gpu import open_device
from wgtrain.infer.model import Model
from wgtrain.model.base import base_on
from wgtrain.model.config import read_config
from wgtrain.model.converted import converted_note
from wgtrain.model.folder import Folder
from wgtrain.model.host import NOWHERE, Host, Loaded
from wgtrain.model.weights import check_precision, load_weights

_SAMPLE = 1 << 20  # bytes of tensor data at either end that the fingerprint covers


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
    quantize_base: str | None = None,
    progress: Loaded | None = None,
    host: Host = NOWHERE,
) -> Model:
    """Puts a GGUF's or folder's weights on a GPU; `gpu.open_device` says more on the options.

    `precision`: the operands of products with weights; "f16" needs a GPU with shader-f16.
    `progress(done, total)` is called with bytes of weights, in place of what `host` shows.
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
        base = base_on(device, gguf, config, precision, quantize_base)
        if note := converted_note(gguf.tensors[name] for name in base.weights.matrices):
            host.say(f"{gguf.name}: {note}")
        with nullcontext(progress) if progress else host.load() as loaded:
            await load_weights(device, source, gguf, base.weights, loaded)
    except BaseException:
        device.close()
        raise
    return Model(
        gguf, base, device, fingerprint, host, opened.no_tokenizer, precision, quantize_base
    )
