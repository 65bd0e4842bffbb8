"""The facts of a prepared data set for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from genrec.reporting import data_sections, formats, tables
from genrec.reporting.data_facts import Lengths, Periods
from genrec.reporting.data_report import DataFacts

BAR_CELLS = 20
MAX_PERIOD_COLUMNS = 60
LEVELS = "▁▂▃▄▅▆▇█"


def data_summary(facts: DataFacts) -> Group:
    """Tables of everything that the page shows, curves as bars."""
    manifest = facts.manifest
    parts: list[RenderableType] = [
        Text.assemble((facts.folder, "bold"), "  ", (data_sections.summary(manifest), "dim"), "\n")
    ]
    if note := data_sections.sample_note(facts.sample):
        parts.append(Text(f"{note}\n", style="dim"))
    parts.append(_fact_table("Contents", data_sections.contents(manifest)))
    parts.append(_length_table(facts.lengths))
    parts.append(_fact_table("Lengths and popularity", data_sections.spread(facts.lengths, facts.popularity)))
    if facts.periods:
        parts.append(_period_line(facts.periods))
    if facts.item_types:
        types = data_sections.item_type_rows(facts.item_types)
        parts.append(_share_table("Item types", ["Type", "Items", "Training events", "Share"], types))
    if facts.actions:
        actions = data_sections.action_rows(facts.actions)
        parts.append(_share_table("Actions", ["Action", "Events read", "Share"], actions))
    if facts.plan:
        parts.append(_fact_table("Training", data_sections.plan_rows(facts.plan), data_sections.plan_text(facts.plan)))
        columns = ["Layout", "Slots per event", "Cost", "Slots with events"]
        parts.append(_share_table("Padding avoided", columns, data_sections.layout_rows(facts.plan)))
    else:
        parts.append(Text.assemble(("Training\n", "bold"), facts.plan_problem, "\n"))
    for example in data_sections.example_tables(facts.examples):
        parts.append(_example_table(example))
    if rows := data_sections.put_aside(manifest):
        parts.append(_fact_table("Files put aside", rows))
    return Group(*parts)


def _titled(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column != "Title")  # the titles give way where the terminal is narrow
    return table


def _example_table(example: Mapping[str, Any]) -> Table:
    table = _titled(f"{example['title']}, {example['hint']}", *example["columns"])
    for row in example["rows"]:
        cells = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in row["cells"])
        table.add_row(*cells, style="bold" if row["target"] else None)
    return table


def _fact_table(title: str, rows: Sequence[tables.Row], text: str = "") -> Padding:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=text or None,
        caption_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(Text(row.name), Text(row.value), Text(row.hint))
    return Padding(table, (0, 0, 1, 0))


def _share_table(title: str, columns: Sequence[str], rows: Sequence[data_sections.ShareRow]) -> Table:
    table = _titled(title, columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_row(Text(row.name), *(Text(cell) for cell in row.cells), _bar(row.share / 100))
    return table


def _length_table(lengths: Lengths) -> Table:
    table = _titled("Length of histories", "Events per user")
    for column in ("Users", "Share"):
        table.add_column(column, justify="right")
    table.add_column()
    num_users = max(sum(bucket.num_users for bucket in lengths.buckets), 1)
    most = max(bucket.num_users for bucket in lengths.buckets)
    for bucket in lengths.buckets:
        first = bucket.upper // 2 + 1
        name = f"{first:,} to {bucket.upper:,}" if first < bucket.upper else f"{bucket.upper:,}"
        share = data_sections.percent(bucket.num_users / num_users)
        table.add_row(name, formats.count(bucket.num_users), share, _bar(bucket.num_users / max(most, 1)))
    return table


def _period_line(periods: Periods) -> Text:
    values = periods.events_per_unit
    per_column = -(-len(values) // MAX_PERIOD_COLUMNS)
    columns = [values[start : start + per_column] for start in range(0, len(values), per_column)]
    means = [sum(column) / len(column) for column in columns]
    highest = max(means) or 1.0
    line = "".join(LEVELS[min(int(mean / highest * len(LEVELS)), len(LEVELS) - 1)] for mean in means)
    last_s = periods.first_s + periods.num_units * periods.unit_s - 1
    return Text.assemble(
        (f"Events per {periods.unit}\n", "bold"),
        f"{formats.day(periods.first_s)} {line} {formats.day(last_s)}",
        (f"  highest {formats.count(highest)}\n", "dim"),
    )


def _bar(share: float) -> Text:
    filled = round(share * BAR_CELLS)
    return Text("█" * filled if filled or not share else "▏", style="cyan")
