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
    card = tables.protocol_rows(role.get("protocol"))
    if card:
        summary.add_row(_protocol(card))
    return summary


def _metrics(role_name: str, role: Mapping[str, Any], decisive: str, best_known: Mapping[str, float]) -> Table:
    title = f"{role_name.capitalize()}, {formats.count(role.get('num_users'))} users"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Metric")
    headings = ["Model", "Popularity", "Ratio", *(["Best known", "Reached"] if best_known else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in tables.result_rows(role, decisive, best_known):
        cells = [row.metric, row.model, row.popularity, row.ratio, row.best_known, row.reached]
        table.add_row(*cells[: len(headings) + 1], style="bold" if row.decisive else None)
    return table


def _protocol(card: list[tables.Row]) -> Table:
    table = Table(
        title="Protocol", title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column()
    for row in card:
        table.add_row(Text(row.name), Text(row.value))  # Text: a value like [1, 5] is no markup
    return table
