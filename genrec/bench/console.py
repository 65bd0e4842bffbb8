"""What `genrec bench` shows: a line for each measurement, and a table of the medians at the end."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from genrec.bench.result import Result, Row


def case_line(row: Row) -> str:
    """One measurement in a line."""
    name = escape(f"{row['case']} ({row['mode']}, {int(row['repetition'] or 0) + 1})")
    if row["status"] != "ok":
        return f"{name}: [red]{row['status']}[/], {escape(str(row['error']))}"
    peak = row.get("peak_bytes")
    memory = "" if peak is None else f", {float(peak) / 2**20:,.0f} MiB"
    return f"{name}: {float(row['events_per_s'] or 0):,.0f} events/s{memory}"


def result_table(result: Result) -> Table:
    """Cases and modes with what they came to, and where the bottleneck is."""
    table = Table(title=result.name)
    table.add_column("case", overflow="fold", min_width=12)
    table.add_column("mode", no_wrap=True)
    for column in ("ok", "events/s", "step ms", "peak MiB", "MFU"):
        table.add_column(column, justify="right", no_wrap=True)
    for case, medians in result.medians.items():
        for mode, found in medians.items():
            if mode == "bottleneck":
                continue
            rate = found.get("events_per_s")
            table.add_row(
                _title(case, medians["bottleneck"]) if mode == next(iter(medians)) else "",
                mode,
                f"{found['ok']}/{found['of']}",
                "" if rate is None else f"{rate['median']:,.0f}{_spread(rate)}",
                _shown(found, "step_s", 1_000, "{:,.1f}"),
                _shown(found, "peak_bytes", 2**-20, "{:,.0f}"),
                _shown(found, "mfu", 100, "{:.1f}%"),
                end_section=mode == list(medians)[-2],  # the bottleneck comes after the modes
            )
    return table


def _title(case: str, bottleneck: str | None) -> str:
    return escape(case) + (f"\n[dim]limit: {bottleneck}[/]" if bottleneck else "")


def _spread(rate: dict[str, float]) -> str:
    """How far the repetitions lie from their median, where there are several."""
    if rate["count"] == 1:
        return ""
    return f" ±{max(rate['maximum'] - rate['median'], rate['median'] - rate['minimum']) / rate['median']:.0%}"


def _shown(found: dict[str, Any], name: str, factor: float, form: str) -> str:
    return form.format(found[name]["median"] * factor) if name in found else ""
