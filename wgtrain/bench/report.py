"""docs/performance.md: a page of the records' own words and figures, nothing typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

from wgtrain.bench.charts import draw
from wgtrain.bench.measure import FORMAT, Record
from wgtrain.bench.tables import Table, mib, named, number, percent, tables, with_spread
from wgtrain.errors import FileError, OptionError

_ORDER = ("step", "decode", "adapters", "kernels", "scaling")
_TITLES = {
    "step": "Whole steps",
    "decode": "Generating",
    "adapters": "Adapters between requests",
    "kernels": "Kernels",
    "scaling": "How cost grows",
}
_OPENING = """# Performance

Made by `wgtrain bench report` from JSON files of `wgtrain bench`; a test keeps them the same. A
step is forward, backward, clipping and AdamW until its loss is read, with random weights and every
token trained. Operations are counted by formula: two a multiply-add, products alone, recomputation
not counted. A ceiling is the best product of a sweep over all kernel variants of that adapter and
weight type, or a copy, measured in the same run. Ratios come from samples taken in turn; behind a
figure stand its lowest and highest sample. Another trainer is timed only after its loss and its
gradient norm agreed with ours on the same weights and rows; a sample of either begins with a step
that is not timed, unless steps take more than five seconds. "Unsteady" is a figure whose slowest
round took more than 1.3 times its fastest. Host time is the CPU time of the thread that queues a
step and reads its loss; on a software adapter a part of it is the driver's work on that thread.
Where the speed of a machine itself changes within seconds, as that of shared ones does, a share can
pass 100 %: it says how far to trust the figures around it.
"""


def read_records(paths: Sequence[Path]) -> list[tuple[str, Record]]:
    """(name, record) of each file, in the order of the page; FileError for what is no record."""
    found = []
    for path in paths:
        try:
            record = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None
        except ValueError as error:
            raise FileError(f"{path}: no JSON: {error}") from None
        if not isinstance(record, dict) or record.get("bench") not in _ORDER:
            raise FileError(f"{path}: not a record of wgtrain bench")
        if record.get("format") != FORMAT:
            raise FileError(f"{path}: format {record.get('format')}; {FORMAT} is read here")
        found.append((path.stem, record))
    if not found:
        raise OptionError("report: no JSON file is named")
    return sorted(found, key=lambda pair: (_ORDER.index(pair[1]["bench"]), _size(pair[1]), pair[0]))


def _size(record: Record) -> float:
    return float(record.get("flops_per_step", 0.0))


def page(records: Sequence[tuple[str, Record]], pictures: str) -> str:
    """The page; `pictures` is the folder of the charts as seen from it."""
    parts = [_OPENING, *_surroundings(records)]
    steps = [(name, record) for name, record in records if record["bench"] == "step"]
    if steps:
        parts.append(_markdown(_summary([record for _, record in steps])))
    for kind in _ORDER:
        chosen = [(name, record) for name, record in records if record["bench"] == kind]
        if chosen:
            parts.append(f"## {_TITLES[kind]}\n")
        for name, record in chosen:
            parts += [_command(record, len(_machines(records)) > 1)]
            parts += [_markdown(table) for table in tables(record)]
            parts += [
                f"![{record['bench']} {name}]({pictures}/{name}{suffix}.svg)\n"
                for suffix in draw(record)
            ]
    return "\n".join(parts)


def pictures(records: Sequence[tuple[str, Record]]) -> dict[str, bytes]:
    """The charts of all records by file name."""
    return {
        f"{name}{suffix}.svg": svg
        for name, record in records
        for suffix, svg in draw(record).items()
    }


def _machines(records: Sequence[tuple[str, Record]]) -> list[str]:
    return list(dict.fromkeys(_machine(record) for _, record in records))


def _machine(record: Record) -> str:
    machine, adapter = record["machine"], record["adapter"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {mib(machine['memory'])} MiB, "
        f"{machine['system']}, Python {machine['python']}, wgtrain {machine['wgtrain']}, wgpu "
        f"{machine['wgpu']}; adapter {adapter['name']} ({adapter['type']}, {adapter['backend']}, "
        f"{adapter['driver'] or 'driver not named'})"
    )


def _surroundings(records: Sequence[tuple[str, Record]]) -> list[str]:
    return [f"Measured on: {machine}.\n" for machine in _machines(records)]


def _command(record: Record, several: bool) -> str:
    where = f"\nOn {_machine(record)}.\n" if several else ""
    return f"```sh\n{record['command']}   # {record['date']}\n```\n{where}"


def _summary(records: Sequence[Record]) -> Table:
    names = list(dict.fromkeys(other["name"] for r in records for other in r["vs"]))
    rows = []
    for r in records:
        ratios = {other["name"]: with_spread(other["ratio"]) for other in r["vs"]}
        shape = r["shape"]
        rows.append(
            (
                f"{named(r)}, {shape['rows']} x {shape['length']}",
                with_spread(r["seconds"]),
                number(r["tokens_per_second"]),
                percent(r["share_of_ceiling"]),
                mib(r["memory"]["gpu"]),
                *(ratios.get(name, "") for name in names),
            )
        )
    columns = ("shape", "seconds per step", "tokens/s", "of the ceiling", "GPU memory, MiB")
    beside = tuple(f"our time / {name}'s" for name in names)
    return Table("Summary", (*columns, *beside), rows)


def _markdown(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{table.title}**\n\n{rows}\n"
