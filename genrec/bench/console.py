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
    for column in ("case", "mode"):
        table.add_column(column)
    for column in ("ok", "events/s", "spread", "step", "peak", "MFU"):
        table.add_column(column, justify="right")
    table.add_column("bottleneck")
    for case, medians in result.medians.items():
        for mode, found in medians.items():
            if mode == "bottleneck":
                continue
            rate = found.get("events_per_s")
            table.add_row(
                escape(case),
                mode,
                f"{found['ok']} of {found['of']}",
                "" if rate is None else f"{rate['median']:,.0f}",
                "" if rate is None else f"{(rate['maximum'] - rate['minimum']) / rate['median']:.0%}",
                _shown(found, "step_s", 1_000, "{:,.1f} ms"),
                _shown(found, "peak_bytes", 2**-20, "{:,.0f} MiB"),
                _shown(found, "mfu", 100, "{:.1f}%"),
                medians["bottleneck"] or "",
            )
    return table


def _shown(found: dict[str, Any], name: str, factor: float, form: str) -> str:
    return form.format(found[name]["median"] * factor) if name in found else ""
