"""Every setting of a training run, declared once: type, default, help, bounds, other spellings."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wgtrain.data.templates import check_arguments
from wgtrain.engine.weight import PRECISIONS
from wgtrain.errors import OptionError
from wgtrain.files.adapters import MAX_ALPHA, MIN_ALPHA
from wgtrain.files.names import resolve_targets
from wgtrain.gpu import read_size
from wgtrain.model.quantised import QUANTIZE_BASE
from wgtrain.train.settings import check, number, setting, spelt_right


def _modules(value: Any) -> str:
    """Comma-separated module names from a text or a list of texts; OptionError for unknown ones."""
    parts = value.split(",") if isinstance(value, str) else value
    if (
        not parts
        or not isinstance(parts, list | tuple)
        or not all(isinstance(p, str) for p in parts)
    ):
        raise ValueError("names separated by commas, or all-linear")
    names = [part.strip() for part in parts]
    resolve_targets(names)
    return ",".join(dict.fromkeys(names))


def _layers(value: Any) -> str:
    text = str(value).replace(" ", "")
    if isinstance(value, bool) or (text != "all" and _layer_ranges(text) is None):
        raise ValueError("all, a number N above 0 (the last N), or ranges such as 0-3,8")
    return text


def _layer_ranges(text: str) -> list[tuple[int, int]] | int | None:
    """A count for `N`, (first, last) pairs for ranges; None if the text is neither."""
    if text.isascii() and text.isdigit():
        return int(text) or None
    ranges = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last if "-" in part else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            return None
        if int(first) > int(last):
            return None
        ranges.append((int(first), int(last)))
    return ranges


def _path(value: Any) -> str:
    """A path as it was written, but for a `~` at its front: only shells replace that themselves."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return os.path.expanduser(value)


def _template(value: Any) -> str:
    return value if value == "chatml" else _path(value)


def _arguments(value: Any) -> str:
    """The JSON text of an object, from such a text or from a mapping (in YAML)."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError('an object of JSON, as {"enable_thinking": false}')
    check_arguments(value, "template_args")
    return text


def _valid(value: Any) -> str | float:
    """A fraction between 0 and 1, or the name of a file."""
    wanted = "a file, or a fraction above 0 and below 1"
    try:
        float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and value:
            return _path(value)
        raise ValueError(wanted) from None
    try:
        fraction = number(value)
    except ValueError:
        raise ValueError(wanted) from None
    if isinstance(value, bool) or not 0 < fraction < 1:
        raise ValueError(wanted)
    return fraction


def _prompts(value: Any) -> tuple[str, ...]:
    """One text, or several."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("a text, or a list of texts, none of them empty")
    return tuple(texts)


@spelt_right
@dataclass(frozen=True)
class LoraConfig:
    """The adapter: y = W x + (alpha / rank) B A x at each target."""

    rank: int = setting(16, int, "Rank of the adapter.", low=1, aliases=("lora_r",))
    alpha: float = setting(
        32.0,
        float,
        "The adapter's output is scaled by alpha / rank.",
        low=MIN_ALPHA,
        high=MAX_ALPHA,
        aliases=("lora_alpha",),
    )
    dropout: float = setting(
        0.0, float, "Dropout on the adapter's input.", low=0, below=1, aliases=("lora_dropout",)
    )
    target_modules: str = setting(
        "all-linear",
        str,
        "all-linear (the seven linears of each block), or names separated by commas, in Hugging "
        "Face or GGUF spelling, the output head among them.",
        metavar="NAMES",
        convert=_modules,
    )
    layers: str = setting(
        "all",
        str,
        "Blocks that get an adapter: all, N (the last N), or ranges such as 0-3,8.",
        metavar="LAYERS",
        convert=_layers,
    )

    def __post_init__(self) -> None:
        check(self)

    def layer_indices(self, n_layer: int) -> tuple[int, ...]:
        """The block numbers `layers` means in a model of `n_layer` blocks; OptionError outside."""
        if self.layers == "all":
            return tuple(range(n_layer))
        ranges = _layer_ranges(self.layers)
        if isinstance(ranges, int):
            if ranges > n_layer:
                raise OptionError(f"layers = {ranges}: the model has {n_layer} blocks")
            return tuple(range(n_layer - ranges, n_layer))
        assert ranges is not None
        if max(last for _, last in ranges) >= n_layer:
            raise OptionError(
                f"layers = {self.layers}: the model has {n_layer} blocks, 0 to {n_layer - 1}"
            )
        return tuple(sorted({i for first, last in ranges for i in range(first, last + 1)}))


@spelt_right
@dataclass(frozen=True)
class TrainConfig:
    """How to train. Steps are optimizer steps; `None` means not given."""

    method: str = setting("lora", str, "Kind of fine-tuning.", choices=("lora",))
    epochs: int | None = setting(3, int, "Passes over the data.", low=1)
    iters: int | None = setting(
        None, int, "Optimizer steps, instead of epochs.", low=1, instead_of="epochs"
    )
    batch_size: int = setting(4, int, "Rows of one micro-batch.", low=1)
    grad_accum: int = setting(
        1,
        int,
        "Micro-batches of one optimizer step; an epoch's last step may have fewer.",
        low=1,
        aliases=("grad_accumulation_steps",),
    )
    seq_len: int = setting(
        512, int, "Longest row in tokens; longer ones are cut.", low=2, aliases=("max_seq_length",)
    )
    packing: bool = setting(
        False,
        bool,
        "Fill each micro-batch with whole rows up to batch size x sequence length tokens.",
    )
    learning_rate: float = setting(2e-4, float, "Highest learning rate.", above=0)
    lr_schedule: str = setting(
        "cosine",
        str,
        "Learning rate after the warm-up.",
        choices=("constant", "linear", "cosine", "cosine-restarts"),
    )
    lr_period: int | None = setting(
        None, int, "Steps between restarts of cosine-restarts; an epoch if not given.", low=1
    )
    warmup_ratio: float | None = setting(
        0.03, float, "Part of all steps that warms up, rounded up.", low=0, high=1
    )
    warmup_steps: int | None = setting(
        None, int, "Steps that warm up, instead of a ratio.", low=0, instead_of="warmup_ratio"
    )
    optimizer: str = setting("adamw", str, "Optimizer.", choices=("adamw",))
    weight_decay: float = setting(0.0, float, "Decoupled weight decay.", low=0)
    max_grad_norm: float = setting(
        1.0, float, "Gradients are clipped to this norm; 0 = off.", low=0
    )
    train_on: str = setting(
        "completions",
        str,
        "Tokens that are trained, where a row has a prompt; whole: of chats, only turns whose text "
        "the chat template writes in full.",
        choices=("completions", "all", "whole"),
        switch=("mask_prompt", "completions", "all"),
    )
    grad_checkpoint: str = setting(
        "auto",
        str,
        "Recompute activations in the backward pass, block by block, to save memory; auto does "
        "so where all would not fit.",
        choices=("auto", "on", "off"),
    )
    capture: str = setting(
        "f32",
        str,
        "How activations saved for the backward pass are stored.",
        choices=("f32", "bf16"),
    )
    tuning: str = setting(
        "auto",
        str,
        "Which kernels run: auto takes what was measured on this GPU, and measures where it pays; "
        "measure does so anew; default never.",
        choices=("auto", "default", "measure"),
    )
    valid: str | float | None = setting(
        None,
        str,
        "Validation rows: a file, or a fraction of the data that is then not trained.",
        metavar="FILE|FRACTION",
        convert=_valid,
    )
    eval_every: int = setting(
        100, int, "Steps between validations; 0 = only at the start and the end.", low=0
    )
    sample: tuple[str, ...] | None = setting(
        None,
        str,
        "Prompt that base and tuned model answer while training goes on; may be given several "
        "times. It goes through the chat template where the training rows do.  [default: the "
        "prompts of the first two validation rows, where --sample-every is given]",
        metavar="PROMPT",
        convert=_prompts,
        many=True,
    )
    sample_every: int | None = setting(
        None,
        int,
        "Steps between answers to samples, which come at the end too; 0 = only then.  [default: 0 "
        "with --sample, else none]",
        low=0,
    )
    save_every: int = setting(100, int, "Steps between checkpoints; 0 = only at the end.", low=0)
    save_total_limit: int = setting(2, int, "Checkpoints that are kept; 0 = all.", low=0)
    seed: int = setting(
        42, int, "Seed of the initial adapter, the order and dropout.", low=0, high=2**63 - 1
    )
    shuffle: bool = setting(True, bool, "Shuffle the rows anew for each epoch.")

    def __post_init__(self) -> None:
        check(self, _train_rules)

    @property
    def samples(self) -> bool:
        """Whether there are to be any."""
        return bool(self.sample) or self.sample_every is not None


@spelt_right
@dataclass(frozen=True)
class RunConfig:
    """What a run reads and where it writes; paths, which only the faces open."""

    model: str = setting(
        "",
        str,
        "Base model: a GGUF file, or a Hugging Face folder.",
        metavar="FILE",
        required=True,
        convert=_path,
    )
    data: str = setting(
        "",
        str,
        "Training rows: a JSONL file, or a folder with train.jsonl (and valid.jsonl or "
        "validation.jsonl).",
        metavar="FILE",
        required=True,
        convert=_path,
    )
    kind: str | None = setting(
        None,
        str,
        "Kind of every row, needed where rows have the fields of two.  [default: by their fields]",
        choices=("text", "prompt", "messages", "instruction", "conversations", "input_ids"),
    )
    chat_template: str | None = setting(
        None,
        str,
        "Chat template in place of the model's own: a Jinja file, or chatml.",
        metavar="FILE|chatml",
        convert=_template,
    )
    template_args: str | None = setting(
        None,
        str,
        'More variables for the chat template, as {"enable_thinking": false}; a row\'s '
        "chat_template_kwargs go over them.",
        metavar="JSON",
        aliases=("chat_template_kwargs",),
        convert=_arguments,
    )
    system: str = setting(
        "keep",
        str,
        "System messages: as the chat template writes them, or merged into the user's turn.",
        choices=("keep", "merge"),
    )
    out: str | None = setting(
        None,
        str,
        "New folder of the run.  [default: runs/<time>-<name>]",
        metavar="FOLDER",
        convert=_path,
    )
    test: bool = setting(
        False,
        bool,
        "When all steps are done, tell the loss of test.jsonl in the folder of data, of the base "
        "and with the adapter.",
    )
    init_adapter: str | None = setting(
        None,
        str,
        "Adapter to start from: a GGUF, a PEFT folder, a run or a checkpoint; brings rank, alpha "
        "and targets.",
        metavar="FILE",
        convert=_path,
    )
    adapter_index: int | None = setting(
        None, int, "GPU to use, as `wgtrain doctor` numbers them.", low=0
    )
    gpu_memory: int | None = setting(
        None,
        int,
        "GPU memory that may be used, as 6GiB, 6000MB or bytes.  [default: what is free, where "
        "something says so]",
        metavar="SIZE",
        convert=read_size,
    )
    precision: str = setting(
        "f32",
        str,
        "Operands of products with the base model's weights; f16 needs a GPU with shader-f16.",
        choices=PRECISIONS,
    )
    quantize_base: str | None = setting(
        None,
        str,
        "QLoRA: quantise the blocks' linears of a full-precision base as it is loaded. nf4 is "
        "bitsandbytes', nf4-double takes 8 % less memory; Q4_0 files err less than either.",
        choices=tuple(QUANTIZE_BASE),
    )

    def __post_init__(self) -> None:
        check(self)


def _train_rules(config: TrainConfig) -> Iterable[str]:
    if config.lr_period is not None and config.lr_schedule != "cosine-restarts":
        yield f"lr_period = {config.lr_period}: only for lr_schedule = cosine-restarts"


CONFIGS = (RunConfig, LoraConfig, TrainConfig)  # in the order of options
