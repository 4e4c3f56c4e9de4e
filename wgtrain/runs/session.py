"""A training run in a folder: opened, trained, interrupted, resumed. What `wgtrain train` does."""

import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from wgtrain import __version__
from wgtrain.api import adapter_file, data_file, load_adapter, load_dataset, load_model, read_file
from wgtrain.engine.tuning import Tuning, from_json, to_json
from wgtrain.errors import FileError, NonFiniteError, WgtrainError
from wgtrain.runs import progress
from wgtrain.runs.folder import CONFIG, SUMMARY, RunFolder, check_free, read_yaml
from wgtrain.train.checkpoint import unpack
from wgtrain.train.config import LoraConfig, RunConfig, TrainConfig
from wgtrain.train.settings import as_mapping, build, canonical
from wgtrain.train.trainer import Trainer

CONFIGS = (RunConfig, LoraConfig, TrainConfig)
Say = Callable[[str], None]


def start(settings: dict[str, Any], say: Say = print) -> bool:
    """Trains in a new folder from explicit settings; False if interrupted (after a checkpoint)."""
    paths, lora, config = build(settings, *CONFIGS)
    if paths.out is not None:
        check_free(paths.out)
    given = tuple(name for name, value in settings.items() if value is not None)
    with ExitStack() as stack:
        now = _now()
        trainer = stack.enter_context(_open(paths, lora, config, given, now))
        name = Path(paths.data).stem or "run"
        folder = RunFolder.create(paths.out, name, _used(paths, trainer))
        stack.callback(folder.close)
        _write_start(folder, paths, trainer, now)
        return _train(folder, trainer, say)


def resume(path: str, say: Say = print) -> bool:
    """Goes on from the newest checkpoint of a run, or anew where there is none."""
    folder = RunFolder.open(path)
    with ExitStack() as stack:
        stack.callback(folder.close)
        try:
            summary = folder.read_summary()
            inputs, now, ended = _earlier(summary)
            tuning = from_json(summary["tuning"]) if "tuning" in summary else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"{folder.path / SUMMARY}: damaged ({type(error).__name__}: {error})"
            raise FileError(
                f"{text}; without this file the run goes on, inputs unchecked"
            ) from None
        if ended is not None:
            say(f"{path} is finished: {ended}")
            return True
        config_file = folder.path / CONFIG
        paths, lora, config = build(
            canonical(read_yaml(config_file), CONFIGS, str(config_file)), *CONFIGS
        )
        _check_inputs(folder, inputs)
        trainer = stack.enter_context(_open(paths, lora, config, (), now, tuning))
        model = inputs.get("model", {})
        if model.get("fingerprint") not in (None, trainer.model.fingerprint):
            raise FileError(_changed("model", model["path"], folder))
        _write_start(folder, paths, trainer, now)
        _restore(folder, trainer, say)
        return _train(folder, trainer, say)


@contextmanager
def _open(
    paths: RunConfig,
    lora: LoraConfig,
    config: TrainConfig,
    given: tuple[str, ...],
    now: datetime,
    tuning: Tuning | None = None,
) -> Iterator[Trainer]:
    """Model, rows and trainer of a run."""
    model = load_model(paths.model, adapter_index=paths.adapter_index, precision=paths.precision)
    try:
        read = (model, config.seq_len, config.train_on, now, paths.kind)
        rows = load_dataset(paths.data, *read)
        valid_file = _valid_file(paths, config)
        valid = None
        if valid_file is not None:
            valid = load_dataset(valid_file, *read)
        adapter = load_adapter(paths.init_adapter, model) if paths.init_adapter else None
        trainer = Trainer(model, rows, lora, config, valid, adapter, given, tuning)
        try:
            trainer.build()
            yield trainer
        finally:
            trainer.close()
    finally:
        model.close()


def _now() -> datetime:
    return datetime.now().replace(microsecond=0)


def _write_start(folder: RunFolder, paths: RunConfig, trainer: Trainer, now: datetime) -> None:
    """What a resumed run compares itself with."""
    folder.write_summary(
        status="running",
        version=__version__,
        started=now.isoformat(),
        inputs=_inputs(paths, trainer),
        tuning=to_json(trainer.learner.tuning),
    )


def _earlier(
    summary: dict[str, Any],
) -> tuple[dict[str, dict[str, Any]], datetime, str | None]:
    """(inputs, when it was started, how it ended if it is done) of an earlier run's summary.

    Some chat templates write the date: rows are those of the day the run was started.
    """
    entries = summary.get("inputs", {}).items()
    inputs = {name: {**entry, "path": str(entry["path"])} for name, entry in entries}
    now = datetime.fromisoformat(summary.get("started") or _now().isoformat())
    return inputs, now, _ending(summary) if summary.get("status") == "done" else None


def _valid_file(paths: RunConfig, config: TrainConfig) -> Path | None:
    """The file of validation rows: as set, or `valid.jsonl` of a data folder."""
    if isinstance(config.valid, str):
        return data_file(config.valid, "valid")
    beside = data_file(paths.data, "valid")
    if config.valid is None and Path(paths.data).is_dir() and beside.is_file():
        return beside
    return None


def _used(paths: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """Every setting as used; paths are absolute, so that the run can be resumed from anywhere."""
    used = as_mapping(paths, trainer.lora, trainer.config)
    valid = _valid_file(paths, trainer.config)
    named = {name: used[name] for name in ("model", "data", "init_adapter")} | {"valid": valid}
    return used | {n: str(Path(path).absolute()) for n, path in named.items() if path is not None}


def _inputs(paths: RunConfig, trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Path, size and hash of every file a run reads."""
    read = {
        "data": data_file(paths.data),
        "valid": _valid_file(paths, trainer.config),
        "init_adapter": adapter_file(paths.init_adapter) if paths.init_adapter else None,
    }
    found = {name: path.absolute() for name, path in read.items() if path is not None}
    files = {name: {"path": str(path), **_identity(path)} for name, path in found.items()}
    model = {"path": str(Path(paths.model).absolute()), "fingerprint": trainer.model.fingerprint}
    return {"model": model, **files}


def _identity(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    data = read_file(path)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _check_inputs(folder: RunFolder, inputs: dict[str, dict[str, Any]]) -> None:
    """Raises FileError naming every file that is not what it was when the run started."""
    problems = []
    for name, before in inputs.items():
        try:
            now = _identity(Path(before["path"])) if "sha256" in before else {}
        except FileError as error:
            problems.append(f"{name}: {error}")
            continue
        if any(before.get(key) != value for key, value in now.items()):
            problems.append(_changed(name, before["path"], folder))
    if problems:
        raise FileError("\n".join(problems))


def _changed(name: str, path: str, folder: RunFolder) -> str:
    return f"{name}: {path} has changed since the run in {folder.path} was started"


def _restore(folder: RunFolder, trainer: Trainer, say: Say) -> None:
    """Restores the newest checkpoint that is whole; FileError if there are some and none is."""
    damaged = []
    for step, path in folder.checkpoints():
        try:
            files = folder.read_checkpoint(path)
            unpack(files, str(path))
        except FileError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            _tell(folder, say, f"warning: {text}; using {path.name} instead")
        trainer.restore(files, str(path))
        if not folder.rewind(step):
            _tell(folder, say, f"warning: metrics of steps before {step} are missing")
        _tell(folder, say, f"resuming after step {step} of {trainer.total_steps}")
        return
    if damaged:
        raise FileError(
            "\n".join([*damaged, f"{folder.path}: no checkpoint is left to resume from"])
        )
    folder.rewind(0)
    _tell(folder, say, f"{folder.path} has no checkpoint yet: starting anew")


def _train(folder: RunFolder, trainer: Trainer, say: Say) -> bool:
    """Runs a trainer to its end in a folder; False if interrupted."""
    first = trainer.step
    _tell(folder, say, _opening(folder, trainer))
    folder.write_summary(status="running", error=None, **_facts(folder, trainer))
    try:
        with ExitStack() as stack:
            show = stack.enter_context(_display(trainer, say))
            log = stack.enter_context(progress.lines(trainer, folder.log))
            stack.enter_context(_stopped_by_signals(trainer))  # last: `run` forgets earlier stops
            saved = _loop(folder, trainer, lambda result: (show(result), log(result)))
            if trainer.step > saved or trainer.step == 0:
                folder.save_checkpoint(
                    trainer.step, trainer.checkpoint(), trainer.config.save_total_limit
                )
        done = trainer.step == trainer.total_steps
        if done:
            folder.write_results(trainer.adapter_gguf(), trainer.adapter_peft())
        else:
            folder.draw()
    except BaseException as error:
        text = _named(error, folder)
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        folder.write_summary(status=status, error=text, **_facts(folder, trainer))
        folder.log(f"{status}: {text}")
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(text) from None
        raise
    facts = _facts(folder, trainer)
    folder.write_summary(status="done" if done else "interrupted", **facts)
    if done:
        _tell(folder, say, f"{_ending(facts)}\nadapter: {folder.path / 'adapter.gguf'}")
    else:
        _tell(
            folder,
            say,
            f"interrupted after step {trainer.step} ({trainer.step - first} done now); "
            f"wgtrain train --resume {folder.path} goes on",
        )
    return done


def _loop(folder: RunFolder, trainer: Trainer, show: Callable[[Any], Any]) -> int:
    """Trains, recording every step; returns the step of the last checkpoint."""
    every, saved = trainer.config.save_every, trainer.step
    at_start = trainer.step == 0
    for result in trainer.run():
        folder.record(result, trainer.evaluations[0] if at_start and trainer.valid else None)
        at_start = False
        show(result)
        if every and result.step % every == 0:
            files = trainer.checkpoint()
            folder.save_checkpoint(result.step, files, trainer.config.save_total_limit)
            saved = result.step
    return saved


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the trainer after the steps in flight; a second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _display(trainer: Trainer, say: Say) -> Any:
    return progress.bar(trainer) if sys.stderr.isatty() else progress.lines(trainer, say)


def _named(error: BaseException, folder: RunFolder) -> str:
    """An error in words; of a run that became not finite, with the last good checkpoint."""
    if isinstance(error, NonFiniteError):
        last = next((str(path) for _, path in folder.checkpoints()), "none was written yet")
        return f"{error}; last good checkpoint: {last}"
    return str(error) if isinstance(error, WgtrainError) else f"{type(error).__name__}: {error}"


def _tell(folder: RunFolder, say: Say, text: str) -> None:
    say(text)
    folder.log(text)


def _opening(folder: RunFolder, trainer: Trainer) -> str:
    rows, valid = trainer.rows, trainer.valid
    parts = [f"{len(rows.rows)} rows"]
    if rows.truncated:
        parts.append(f"{rows.truncated} cut at {rows.seq_len} tokens")
    if rows.dropped:
        parts.append(f"{rows.dropped} dropped, no token of them is trained")
    if valid is not None:
        parts.append(f"{len(valid.rows)} for validation")
    learner, context = trainer.learner, trainer.model.config.context
    longest = max(len(row.tokens) for row in rows.rows)
    long = f"rows of up to {longest} tokens, but the model was made for {context}"
    return "\n".join(
        [
            f"{rows.name}: {', '.join(parts)}",
            *([long] if longest > context else []),
            *rows.notes,
            f"{learner.parameter_count:,} parameters, {trainer.total_steps} steps, "
            f"{learner.nbytes / 2**20:,.1f} MiB of GPU memory for training",
            f"kernels: {learner.tuning.origin}",
            f"writing to {folder.path}",
        ]
    )


def _facts(folder: RunFolder, trainer: Trainer) -> dict[str, Any]:
    """What summary.json says of a run, finished or not."""
    losses, evaluations = folder.losses, folder.evaluations
    names = ("adapter.gguf", "adapter_config.json", "adapter_model.safetensors", "loss.svg")
    return {
        "step": trainer.step,
        "total_steps": trainer.total_steps,
        "parameters": trainer.learner.parameter_count,
        "rows": len(trainer.rows.rows),
        "valid_rows": len(trainer.valid.rows) if trainer.valid else 0,
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "first_eval_loss": evaluations[0][1] if evaluations else None,
        "last_eval_loss": evaluations[-1][1] if evaluations else None,
        "seconds": trainer.elapsed_seconds,
        "tokens": trainer.tokens_seen,
        "bytes": trainer.learner.nbytes,
        "paths": {n: str(folder.path / n) for n in names if (folder.path / n).exists()},
    }


def _ending(facts: dict[str, Any]) -> str:
    words = f"{facts['step']} steps, {facts['tokens']:,} tokens, {facts['seconds']:.1f} s, "
    words += f"loss {facts['first_loss']:.4f} -> {facts['last_loss']:.4f}"
    if facts["first_eval_loss"] is not None:
        words += f", validation {facts['first_eval_loss']:.4f} -> {facts['last_eval_loss']:.4f}"
    return words
