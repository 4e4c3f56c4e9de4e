"""Records as tables of text: what the terminal shows and what docs/performance.md holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from wgtrain.bench.measure import Record
from wgtrain.tune.sweep import Measured, as_text

UNSTEADY = 1.3  # times the fastest round that the slowest took


@dataclass(frozen=True)
class Table:
    """A title, and rows of as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(record: Record) -> list[Table]:
    """The tables of any record."""
    return list(_TABLES[record["bench"]](record))


def tuned(stored: Sequence[Measured]) -> Table:
    """What is stored of an adapter's kernels."""
    columns = ("family", "kernel", "GFLOP/s", "default, GFLOP/s", "variants", "tokens")
    rows = [
        (
            entry.family,
            as_text(entry.choice),
            number(entry.rate / 1e9),
            number(entry.default_rate / 1e9),
            str(entry.tried),
            str(entry.shape.rows),
        )
        for entry in stored
    ]
    return Table("Kernels measured on this adapter", columns, rows)


def number(value: float) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 1.23, 123, 1,234."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits, size = 2, abs(value)
    while size < 1 and digits < 9:
        size, digits = size * 10, digits + 1
    return f"{value:.{digits if abs(value) < 10 else 1}f}"


def with_spread(found: Record) -> str:
    """A median with its extremes: 1.23 (1.20 - 1.31), or what it lacks: rounds or steadiness."""
    median, low, high = (number(found[n]) for n in ("median", "low", "high"))
    if len(found["samples"]) == 1:
        return f"{median} (one round)"
    unsteady = ", unsteady" if found["high"] > UNSTEADY * found["low"] else ""
    return f"{median} ({low} - {high}{unsteady})"


def percent(share: float) -> str:
    """0.123 -> 12 %."""
    return f"{100 * share:.0f} %"


def mib(nbytes: int | None) -> str:
    """Bytes as MiB; what a system does not say is a dash."""
    return "-" if nbytes is None else number(nbytes / 2**20)


def _step_tables(record: Record) -> Iterator[Table]:
    shape, best = record["shape"], record["ceiling"]
    memory = record["memory"]
    title = (
        f"{named(record)}, {shape['type']}: {shape['rows']} x {shape['length']} tokens, "
        f"LoRA rank {shape['rank']} on {len(shape['targets'])} modules"
    )
    host = record["host_seconds_per_step"]["median"]
    rows = [
        ("seconds per step", with_spread(record["seconds"])),
        ("rounds x steps of each", _rounds(record)),
        ("tokens per second", number(record["tokens_per_second"])),
        ("GFLOP per step", number(record["flops_per_step"] / 1e9)),
        ("GFLOP/s", number(record["flops_per_second"] / 1e9)),
        ("ceiling, GFLOP/s", f"{number(best['per_second'] / 1e9)} ({best['what']})"),
        ("share of the ceiling", percent(record["share_of_ceiling"])),
        ("kernels", record["tuning"]["origin"]),
        ("host time per step, ms", number(1e3 * host)),
        (
            "host time per dispatch, us",
            f"{number(1e6 * record['host_seconds_per_dispatch'])} of {record['dispatches']}",
        ),
        (
            "GPU memory, MiB",
            f"{mib(memory['gpu'])} (weights {mib(memory['weights'])})",
        ),
        ("process at its largest, MiB", mib(memory["process_peak"])),
    ]
    yield Table(title, ("", "measured"), rows)
    if record["vs"]:
        yield _rivals(record)
    total = sum(row["seconds"] for row in record["kernels"])
    how = "timestamps" if record["timestamps"] else "each submitted alone"
    yield Table(
        f"Time by kernel ({how})",
        ("kernel", "calls", "ms", "share"),
        [
            (
                x["kernel"],
                str(x["calls"]),
                number(1e3 * x["seconds"]),
                percent(x["seconds"] / total),
            )
            for x in record["kernels"]
            if x["seconds"] >= 0.005 * total
        ],
    )


def named(record: Record) -> str:
    """The shape of a step, and its precision where that is not f32."""
    name: str = record["shape"]["name"]
    return name if record["precision"] == "f32" else f"{name} in {record['precision']}"


def _rounds(side: Record) -> str:
    """How many samples there are of one trainer, and how many steps in each."""
    return f"{len(side['seconds']['samples'])} x {side['steps_of_a_sample']}"


def _rivals(record: Record) -> Table:
    rows = []
    for other in record["vs"]:
        versions = ", ".join(f"{name} {v}" for name, v in other["versions"].items())
        rows.append(
            (
                f"{other['name']} ({versions}; {other['device']}, {other['dtype']})",
                with_spread(other["seconds"]),
                _rounds(other),
                with_spread(other["ratio"]),
                ", ".join(f"{other['difference'][x]:.0e}" for x in ("loss", "grad_norm")),
            )
        )
    columns = (
        "beside",
        "seconds per step",
        "rounds x steps",
        "our time / theirs",
        "loss, gradient norm differ by",
    )
    return Table("The same step elsewhere, in turn", columns, rows)


def _kernel_tables(record: Record) -> Iterator[Table]:
    rows = [
        (
            x["type"] or "copy",
            number(x["per_second"] / 1e9),
            "GFLOP/s" if x["type"] else "GB/s",
            f"{x['group']}: {x['what']}" if x["type"] else x["what"],
        )
        for x in record["ceilings"]
    ]
    yield Table("Ceilings of this adapter", ("of", "rate", "unit", "by"), rows)
    for shape in dict.fromkeys(row["shape"] for row in record["kernels"]):
        found = [row for row in record["kernels"] if row["shape"] == shape]
        precision = "" if record["precision"] == "f32" else f", {record['precision']}"
        compared = any("rate_of_f32" in row for row in found)
        columns = ("kernel", "size", "weight", "rate", "unit", "of the ceiling")
        yield Table(
            f"{shape}{precision}",
            (*columns, "of F32's rate") if compared else columns,
            [
                (
                    x["group"],
                    _size(x),
                    x["type"],
                    number(x["per_second"] / 1e9),
                    f"G{x['unit']}/s",
                    percent(x["share_of_ceiling"]),
                    *([_rate_of_f32(x)] if compared else []),
                )
                for x in found
            ],
        )


def _rate_of_f32(row: Record) -> str:
    return percent(row["rate_of_f32"]["median"]) if "rate_of_f32" in row else ""


def _size(row: Record) -> str:
    """What was measured; of windows also which part of the time of whole rows they take."""
    if "of_whole_rows" not in row:
        return str(row["what"])
    return f"{row['what']}: {percent(row['of_whole_rows']['median'])} of the time"


def _scaling_tables(record: Record) -> Iterator[Table]:
    for curve in record["curves"]:
        points = curve["points"]
        rows = []
        for before, point in zip([None, *points], points, strict=False):
            median = point["seconds"]["median"]
            rows.append(
                (
                    str(point["value"]),
                    with_spread(point["seconds"]),
                    _growth(median, before and before["seconds"]["median"]),
                    number(1e3 * point["attention"]),
                    _growth(point["attention"], before and before["attention"]),
                    number(1e6 * median / point["tokens"]),
                    number(point["flops"] / median / 1e9),
                    mib(point["plan"]),
                    _growth(point["plan"], before and before["plan"]),
                )
            )
        columns = (
            curve["axis"],
            "seconds per step",
            "growth",
            "attention, ms",
            "growth",
            "us per token",
            "GFLOP/s",
            "plan, MiB",
            "growth",
        )
        yield Table(f"{record['shape']['name']} by {curve['what']}", columns, rows)


def _decode_tables(record: Record) -> Iterator[Table]:
    shape, copied = record["shape"], record["copy"]
    title = (
        f"{shape['name']}, {shape['type']}: {shape['rows']} rows after {shape['length']} tokens, "
        f"adapters of rank {shape['rank']}"
    )
    rows = [
        (
            str(x["adapters"]),
            number(x["tokens_per_second"]),
            with_spread(x["ratio"]),
            number(x["prefill_tokens_per_second"]),
            number(x["bytes_per_second"] / 1e9),
            percent(x["share_of_copy"]),
            str(x["dispatches"]),
            number(1e6 * x["host_seconds_per_dispatch"]),
        )
        for x in record["stacks"]
    ]
    columns = (
        *("adapters", "tokens/s", "time of the first's", "prompt tokens/s", "weights, GB/s"),
        *(f"of a copy's {number(copied['per_second'] / 1e9)}", "dispatches", "host us each"),
    )
    yield Table(title, columns, rows)
    if record["vs"]:
        beside = [
            (
                f"{x['name']} ({x['versions'][next(iter(x['versions']))]}, {x['threads']} threads)",
                number(x["tokens_per_second"]),
                number(x["prefill_tokens_per_second"]),
                with_spread(x["ratio"]),
            )
            for x in record["vs"]
        ]
        own = ("beside", "tokens/s", "prompt tokens/s", "our time of a token / theirs")
        yield Table("The same elsewhere, in turn", own, beside)


def _growth(value: float, before: float | None) -> str:
    """How many times the value of the point before."""
    return f"x {number(value / before)}" if before else ""


def _adapter_tables(record: Record) -> Iterator[Table]:
    shape = record["shape"]
    rows = []
    for change in record["changes"]:
        in_ms = {n: 1e3 * value for n, value in change["seconds"].items() if n != "samples"}
        rows.append((change["what"], with_spread({**change["seconds"], **in_ms})))
    title = (
        f"{shape['name']}, {shape['type']}: adapters of rank {shape['rank']}, "
        f"{mib(record['adapter_bytes'])} MiB each; room for {record['ranks']} ranks takes "
        f"{mib(record['gpu_bytes'])} MiB"
    )
    yield Table(title, ("until the GPU has it", "ms"), rows)


_TABLES: dict[str, Callable[[Record], Iterator[Table]]] = {
    "step": _step_tables,
    "kernels": _kernel_tables,
    "scaling": _scaling_tables,
    "decode": _decode_tables,
    "adapters": _adapter_tables,
}
