"""A run in its folder: opened, trained, interrupted, resumed. What `wgtrain train` does."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from wgtrain import __version__
from wgtrain.api import load_adapter, load_dataset, load_model, opened_base, training_tokenizer
from wgtrain.data import Dataset, Tokenizer
from wgtrain.data.examples import in_rows
from wgtrain.data.prompts import Prompt
from wgtrain.data.templates import Templating
from wgtrain.engine.tables import from_json, to_json
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import FileError, NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.infer.samples import sample_prompts
from wgtrain.planned import plan
from wgtrain.runs import parts, progress
from wgtrain.runs.chats import arguments_of, templating_of
from wgtrain.runs.entries import NAMES, read_entries
from wgtrain.runs.folder import SUMMARY, TEMPLATE, RunFolder, check_free
from wgtrain.runs.inputs import Inputs, Rows, changed, found_again
from wgtrain.runs.samples import base_in_words
from wgtrain.runs.stopping import stopped_by_signals
from wgtrain.runs.telling import (
    Say,
    Voice,
    ending,
    facts,
    how_to_use,
    in_words,
    memory,
    opening,
    tested,
)
from wgtrain.train.checkpoint import unpack
from wgtrain.train.config import CONFIGS, LoraConfig, RunConfig
from wgtrain.train.schedule import make_schedule
from wgtrain.train.settings import as_mapping, build, canonical, merge
from wgtrain.train.start import split_rows
from wgtrain.train.trainer import Trainer
from wgtrain.train.windows import Windows

# What may stand beside `resume`: more steps, the machine, and where files are now.
LENGTH = ("iters", "epochs")
MACHINE = ("gpu_memory",)  # no matter of numbers
BESIDE_RESUME = (*LENGTH, *MACHINE, *NAMES)


def start(settings: dict[str, Any], say: Say = print) -> bool:
    """Trains in a new folder from explicit settings; False if interrupted (after a checkpoint)."""
    paths, lora, config = build(settings, *CONFIGS)
    check_free(paths.out if paths.out is not None else "runs/new")
    given = tuple(name for name, value in settings.items() if value is not None)
    voice = Voice(say)
    with ExitStack() as stack:
        inputs = Inputs(paths, config)
        now = _now()
        chat = _templating(paths, now)
        trainer = stack.enter_context(_open(inputs, lora, given, chat, voice))
        name = "pipe" if inputs.data.pipe else Path(paths.data).stem or "run"
        folder = RunFolder.create(paths.out, name, _used(inputs, trainer))
        stack.callback(folder.close)
        voice.attach(folder)
        if chat.source is not None:
            folder.write_template(chat.source)
        _write_start(folder, inputs, trainer, now)
        return _train(folder, inputs, trainer, voice)


def resume(path: str, say: Say = print, given: Mapping[str, Any] | None = None) -> bool:
    """Goes on from the newest checkpoint of a run, or anew where there is none.

    `given` are settings of `BESIDE_RESUME`: another length, files at other places.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if wrong := [name for name in given if name not in BESIDE_RESUME]:
        raise OptionError(f"{', '.join(wrong)}: not beside resume, it comes from the run")
    folder = RunFolder.open(path)
    voice = Voice(say)
    with ExitStack() as stack:
        stack.callback(folder.close)
        before, now, tuning, ended = _earlier(folder)
        longer = {name: given.pop(name) for name in LENGTH if name in given}
        other = {name: given.pop(name) for name in MACHINE if name in given}
        if ended is not None and not longer and folder.has_results():
            voice.show(f"{path} is finished: {ended}; more steps: --resume {path} --iters N")
            return True
        voice.attach(folder)
        config_file = str(folder.path / "config.yaml")
        stored = canonical(folder.settings(), CONFIGS, config_file)
        paths, lora, config = build(merge(stored, longer | other, CONFIGS), *CONFIGS)
        inputs = found_again(paths, config, before, given, folder.path)
        chat = _templating(paths, now, folder)
        trainer = stack.enter_context(_open(inputs, lora, (), chat, voice, tuning, True))
        model = before.get("model", {})
        if model.get("fingerprint", trainer.model.fingerprint) != trainer.model.fingerprint or (
            model.get("sha256") and model["sha256"] != inputs.model_hash()
        ):
            raise FileError(changed("model", inputs.paths.model, folder.path))
        _restore(folder, trainer, voice)
        folder.write_settings(_used(inputs, trainer))
        _write_start(folder, inputs, trainer, now)
        return _train(folder, inputs, trainer, voice)


@contextmanager
def _open(
    inputs: Inputs,
    lora: LoraConfig,
    given: tuple[str, ...],
    chat: Templating,
    voice: Voice,
    tuning: Tuning | None = None,
    resumed: bool = False,
) -> Iterator[Trainer]:
    """Model, rows and trainer of a run."""
    paths, config = inputs.paths, inputs.config
    voice(f"opening {paths.model}")
    with opened_base(paths.model) as base:
        (rows, valid, test), samples = _rows(training_tokenizer(base), inputs, chat)
        where: dict[str, Any] = {
            "adapter_index": paths.adapter_index,
            "precision": paths.precision,
            "quantize_base": paths.quantize_base,
            "gpu_memory": paths.gpu_memory,
        }
        brought = paths.init_adapter
        more: dict[str, Any] = {"test": test, "given": given, "samples": samples}
        planned = plan(base, lora, config, rows, valid, init_adapter=brought, **more, **where)
        voice.show(memory(planned.needs))
        if planned.problem:
            raise OutOfMemoryError(planned.shortage(advice=not resumed))
        model = load_model(base, **where)
    try:
        adapter = load_adapter(paths.init_adapter, model) if paths.init_adapter else None
        trainer = Trainer(model, rows, lora, config, valid, adapter, tuning=tuning, **more)
        if resumed:
            trainer.fixed_settings()
        if samples:  # which may take as long as many steps
            several = "s" if len(samples) > 1 else ""
            voice.show(f"the base answers {len(samples)} sample prompt{several}")
        try:
            trainer.build()
            yield trainer
        finally:
            trainer.close()
    finally:
        model.close()


def _rows(
    tokenizer: Tokenizer, inputs: Inputs, chat: Templating
) -> tuple[tuple[Dataset, Dataset | None, Dataset | None], list[Prompt]]:
    """The rows to learn, to validate and to test with, and the prompts of samples. A tokenizer, of
    100 MB where the vocabulary is large, is held no longer than they are read, but for samples.
    """
    paths, config = inputs.paths, inputs.config
    read = (tokenizer, config.seq_len, config.train_on, chat.now, paths.kind)

    def load(rows: Rows) -> Dataset:
        return load_dataset(rows.take(), *read, name=str(rows.path), chat=chat)

    rows = load(inputs.data)
    held, tests = (None if part is None else load(part) for part in (inputs.valid, inputs.test))
    samples: list[Prompt] = []
    if config.samples:
        asked = held
        if held is None and isinstance(config.valid, float):
            _, asked = split_rows(rows, config.valid, config.seed)
        samples = sample_prompts(config.sample or (), rows, asked, tokenizer)
    return (rows, held, tests), samples


def _templating(paths: RunConfig, now: datetime, folder: RunFolder | None = None) -> Templating:
    """How conversations become text; of an earlier run by the template it keeps in its folder."""
    if paths.chat_template is None or folder is None:
        return replace(templating_of(paths), now=now)
    text, label = folder.read_template(), str(folder.path / TEMPLATE)
    return Templating(text, arguments_of(paths), paths.system, now, label)


def _now() -> datetime:
    return datetime.now().replace(microsecond=0)


def _used(inputs: Inputs, trainer: Trainer) -> dict[str, Any]:
    """Every setting as used."""
    return as_mapping(inputs.paths, trainer.lora, trainer.config) | inputs.used()


def _write_start(folder: RunFolder, inputs: Inputs, trainer: Trainer, now: datetime) -> None:
    """What a resumed run compares itself with."""
    folder.write_summary(
        status="running",
        version=__version__,
        started=now.isoformat(),
        inputs=inputs.identity(folder.path, trainer.model.fingerprint, wait=False),
        tuning=to_json(trainer.learner.tuning),
    )


def _earlier(
    folder: RunFolder,
) -> tuple[dict[str, dict[str, Any]], datetime, Tuning | None, str | None]:
    """(inputs, when it was started, its kernels, how it ended if it is done) by summary.json.

    Some chat templates write the date: rows are those of the day the run was started. Without the
    file what a checkpoint holds is compared alone: its base and its rows.
    """
    summary = folder.read_summary()
    try:
        inputs = read_entries(summary.get("inputs", {}))
        started = summary.get("started") or _day_of_chats(folder) or _now().isoformat()
        now = datetime.fromisoformat(started)
        tuning = from_json(summary["tuning"]) if "tuning" in summary else None
        ended = ending(summary) if summary.get("status") == "done" else None
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        text = f"{folder.path / SUMMARY}: damaged ({type(error).__name__}: {str(error)[:200]})"
        raise FileError(
            f"{text}; without this file the run goes on, compared by its checkpoint alone"
        ) from None
    return inputs, now, tuning, ended


def _day_of_chats(folder: RunFolder) -> Any:
    """The day that the chat template of a run wrote, by its newest checkpoint that is whole."""
    for _, path in folder.checkpoints():
        with contextlib.suppress(FileError, AttributeError):
            settings = unpack(folder.read_checkpoint(path), str(path)).state.settings
            return settings.get("chat", {}).get("now")
    return None


def _restore(folder: RunFolder, trainer: Trainer, voice: Voice) -> None:
    """Restores the newest checkpoint that is whole; FileError if there are some and none is."""
    damaged = []
    for step, path in folder.checkpoints():
        try:
            files = folder.read_checkpoint(path)
            saved = unpack(files, str(path)).state
            if saved.step != step:
                raise FileError(f"{path}: holds step {saved.step}")
        except FileError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            voice(f"warning: {text}; using {path.name} instead")
        trainer.restore(files, str(path), prolong=True)
        _rewind(folder, step, voice)
        voice(f"resuming after step {step} of {trainer.total_steps}")
        if change := _other_length(trainer, saved.settings):
            voice(change)
        return
    if damaged:
        raise FileError(
            "\n".join([*damaged, f"{folder.path}: no checkpoint is left to resume from"])
        )
    _rewind(folder, 0, voice)
    voice(f"{folder.path} has no checkpoint yet: starting anew")


def _rewind(folder: RunFolder, step: int, voice: Voice) -> None:
    found = folder.rewind(step)
    if found.damaged:
        voice(
            f"warning: {found.damaged} damaged lines of metrics.jsonl are set aside, in "
            "metrics.damaged"
        )
    if not found.whole:
        voice(f"warning: metrics of steps before {step} are missing")


def _other_length(trainer: Trainer, settings: Mapping[str, Any]) -> str:
    """What another number of steps than the checkpoint's does to the learning rate."""
    length: dict[str, Any] = {name: settings.get(name) for name in LENGTH}
    if length == {name: getattr(trainer.config, name) for name in LENGTH}:
        return ""
    before = replace(trainer.config, **length)
    windows = Windows(trainer.rows, before)
    old = make_schedule(before, windows.total, windows.per_epoch)
    step = trainer.step
    text = f"{trainer.total_steps} steps instead of {windows.total}"
    if step == trainer.total_steps:
        return text
    last = f"{old(step):.3g} at step {step}, " if step else ""
    return f"{text}: learning rate {last}{trainer.schedule(step + 1):.3g} at step {step + 1}"


def _train(folder: RunFolder, inputs: Inputs, trainer: Trainer, voice: Voice) -> bool:
    """Runs a trainer to its end in a folder; False if interrupted."""
    first = trainer.step
    voice.log(memory(trainer.needs))
    voice("\n".join([*inputs.notes(), opening(folder, trainer)]))
    if trainer.base_samples:
        voice(base_in_words(trainer.base_samples))
    folder.write_summary(status="running", error=None, **facts(folder, trainer))

    def save() -> None:
        folder.write_summary(inputs=inputs.identity(folder.path, trainer.model.fingerprint))
        folder.save_checkpoint(trainer.step, trainer.checkpoint(), trainer.config.save_total_limit)

    try:
        with ExitStack() as stack:
            show = stack.enter_context(_display(trainer, voice.show))
            log = stack.enter_context(progress.lines(trainer, voice.log))
            stack.enter_context(stopped_by_signals(trainer))  # last: `run` forgets earlier stops
            saved = _loop(folder, trainer, lambda result: (show(result), log(result)), save)
            if trainer.step > saved or trainer.step == 0:
                save()
            done = trainer.step == trainer.total_steps
            if trainer.step:
                folder.write_results(trainer.adapter_gguf(), trainer.adapter_peft())
        if done and trainer.test_rows:  # all else is saved: an interrupt ends this at once
            voice(f"evaluating {in_rows(len(trainer.test_rows.rows))} of {trainer.test_rows.name}")
            with parts.counted() as counts:
                losses = trainer.test(lambda done, total: counts("test batches", done, total))
            voice(tested(losses))
    except BaseException as error:
        text = in_words(error, folder)
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(OSError, FileError):  # of a folder that is gone
            voice.log(f"{status}: {text}")
            folder.write_summary(status=status, error=text, **facts(folder, trainer))
        if isinstance(error, OSError):
            folder.check()  # a folder that went away is the better reason
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(text) from None
        if isinstance(error, KeyboardInterrupt):
            newest = next((path.name for _, path in folder.checkpoints()), None)
            voice(
                f"stopped at once; wgtrain train --resume {folder.path} goes on "
                f"from {newest or 'the start'}"
            )
        raise
    found = facts(folder, trainer)
    folder.write_summary(status="done" if done else "interrupted", **found)
    adapter = f"adapter: {folder.path / 'adapter.gguf'}"
    if done:
        voice(f"{ending(found)}\n{adapter}\n{how_to_use(folder.path, trainer.rows)}")
    else:
        voice(
            f"interrupted after step {trainer.step} ({trainer.step - first} done now); "
            f"wgtrain train --resume {folder.path} goes on"
            + (f"\n{adapter}, as it is after step {trainer.step}" if trainer.step else "")
        )
    return done


def _loop(
    folder: RunFolder,
    trainer: Trainer,
    show: Callable[[Any], Any],
    save: Callable[[], None],
) -> int:
    """Trains, recording every step; returns the step of the last checkpoint."""
    every, saved = trainer.config.save_every, trainer.step
    at_start = trainer.step == 0
    for result in trainer.run():
        folder.record(result, trainer.evaluations[0] if at_start and trainer.valid else None)
        at_start = False
        show(result)
        if every and result.step % every == 0:
            save()
            saved = result.step
    return saved


def _display(trainer: Trainer, say: Say) -> Any:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return progress.bar(trainer) if terminal else progress.lines(trainer, say)
