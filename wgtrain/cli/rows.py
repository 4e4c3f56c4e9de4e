"""How rows are read that base and adapters are judged by."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wgtrain.cli.streams import complain
from wgtrain.runs.adapters import NamedAdapter, run_of
from wgtrain.runs.held_out import READ, read_as
from wgtrain.train.config import RunConfig, TrainConfig
from wgtrain.train.settings import build, canonical


def runs_of(adapters: Collection[NamedAdapter]) -> list[Path]:
    """The runs that adapters come from."""
    found = [run_of(Path(adapter.path)) for adapter in adapters]
    return list(dict.fromkeys(run for run in found if run is not None))


def row_settings(
    given: Mapping[str, Any], names: Collection[str], runs: list[Path]
) -> tuple[RunConfig, TrainConfig]:
    """How rows are read and batched: as options of these names say, or as the runs did."""
    line = {name: given[name] for name in names if given[name] is not None}
    settings = canonical(line, (RunConfig, TrainConfig), "command line")
    theirs = {name: value for name, value in read_as(runs).items() if name not in settings}
    plain = (RunConfig("-", "-"), TrainConfig())
    unlike = {
        name: value
        for name, value in theirs.items()
        if value != next(getattr(one, name) for one in plain if hasattr(one, name))
    }
    if unlike:
        named = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in unlike.items())
        complain(f"rows are read as for {' and '.join(map(str, runs))}: {named}")
    if len(runs) > 1 and not theirs and not set(READ) <= settings.keys():
        complain("warning: these runs read rows in different ways; none of them is used")
    rows, config = build({"model": "-", "data": "-", **theirs, **settings}, RunConfig, TrainConfig)
    return rows, config
