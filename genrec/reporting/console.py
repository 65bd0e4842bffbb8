"""The headline of a run for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from genrec.errors import DataError
from genrec.reporting import formats, tables


def console_summary(
    evaluation: Mapping[str, Any], decisive: str = "ndcg@10", best_known: Mapping[str, float] | None = None
) -> Table:
    """A printable table: the test metrics (validation where test is missing) beside the popularity baseline, and the
    protocol card under them.

    `evaluation` is the content of `evaluation.json`; the metric `decisive` is set in bold; `best_known`, the
    manifest's, adds how much of the best reachable value a test result gets. Raises DataError when `evaluation` has
    neither role.
    """
    role_name = next((name for name in ("test", "validation") if evaluation.get(name)), None)
    if role_name is None:
        raise DataError("The evaluation has neither a test nor a validation result; run `genrec evaluate RUN` first.")
    role = evaluation[role_name]
    summary = Table.grid(padding=(0, 0, 1, 0))
    limits = tables.best_known_of(role, best_known or {}) if role_name == "test" else {}
    summary.add_row(_metrics(role_name, role, decisive, limits))
    for title, rows in (
        ("Lists", tables.beyond_rows(role, decisive)),
        ("Next event", tables.head_rows(role)),
        ("Protocol", tables.protocol_rows(role.get("protocol"))),
    ):
        if rows:
            summary.add_row(_facts(title, rows))
    return summary


def slices_summary(evaluation: Mapping[str, Any], decisive: str = "ndcg@10") -> Table:
    """A printable table of the slices of test (validation where test is missing) at the metric `decisive`."""
    role_name = next((name for name in ("test", "validation") if evaluation.get(name)), None)
    groups = tables.slice_groups(evaluation[role_name], decisive) if role_name else []
    table = Table(title="Slices", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("Users", "Share", formats.metric_name(decisive), "± 1 SE"):
        table.add_column(heading, justify="right")
    for group in groups:
        table.add_row(Text(group.title, "bold"))
        for row in group.rows:
            table.add_row(Text(f"  {row.name}"), row.num_users, row.share, row.value, row.standard_error)
    if not groups:
        table.add_row(Text("nothing to set apart: every kind of slice holds all users"))
    return table


def _metrics(role_name: str, role: Mapping[str, Any], decisive: str, best_known: Mapping[str, float]) -> Table:
    title = f"{role_name.capitalize()}, {formats.count(role.get('num_users'))} users"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Metric")
    intervals = bool(role.get("intervals"))
    for heading in ("Model", *(["95% interval"] * intervals), "Popularity", "Ratio"):
        table.add_column(heading, justify="right")
    for heading in ("Best known", "Reached") if best_known else ():
        table.add_column(heading, justify="right")
    for row in tables.result_rows(role, decisive, best_known):
        cells = [row.metric, row.model, *([row.interval] * intervals), row.popularity, row.ratio]
        cells += [row.best_known, row.reached] if best_known else []
        table.add_row(*cells, style="bold" if row.decisive else None)
    return table


def _facts(title: str, rows: list[tables.Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for row in rows:
        table.add_row(Text(row.name), Text(row.value))  # Text: a value like [1, 5] is no markup
    return table
