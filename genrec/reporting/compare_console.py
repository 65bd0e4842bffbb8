"""A comparison of runs for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from genrec.reporting import comparison_tables, formats, tables
from genrec.reporting.comparison import Comparison


def comparison_summary(comparison: Comparison) -> Group:
    """The verdicts at the deciding metric, all metrics, what else differs, and the protocol that they share."""
    names = [run.name for run in comparison.runs]
    metric = formats.metric_name(comparison.decisive)
    head = _titled(f"{comparison.role.capitalize()}, {metric}", ["Run", metric, "95% interval", "Difference", ""])
    for row in comparison_tables.verdicts(comparison):
        difference = row.difference if row.difference == formats.MISSING else _difference(row)
        head.add_row(Text(row.name), row.value, row.interval, difference, row.verdict)
    over_seeds = comparison_tables.seed_names(comparison)
    seeds: list[Table | Text] = [
        _rows("Over seeds", over_seeds, comparison_tables.seed_rows(comparison)),
        Text(f"{comparison_tables.SPREAD}\n", style="dim"),
    ]
    return Group(
        head,
        _rows("All metrics", names, comparison_tables.metric_rows(comparison, with_intervals=False)),
        *(seeds if over_seeds else []),
        *(_rows(sliced.title, names, sliced.rows) for sliced in comparison_tables.slice_tables(comparison)),
        _rows("What else differs", names, comparison_tables.other_rows(comparison)),
        _protocol(comparison),
        Text(f"\n{comparison_tables.MEANINGS}. {comparison_tables.note(comparison)}", style="dim"),
    )


def _difference(row: comparison_tables.Verdict) -> str:
    return f"{row.difference} ({row.difference_interval})"


def _rows(title: str, names: Sequence[str], rows: Sequence[comparison_tables.ComparedRow]) -> Table:
    table = _titled(title, ["", *names])
    for row in rows:
        table.add_row(row.name, *(Text(cell) for cell in row.cells), style="bold" if row.strong else None)
    return table


def _protocol(comparison: Comparison) -> Table:
    table = Table(
        title="Protocol, the same for all",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    table.add_column(style="dim")
    table.add_column()
    for row in tables.protocol_rows(comparison.protocol):
        table.add_row(Text(row.name), Text(row.value))
    return table


def _titled(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if place and column else "left")
    return table
