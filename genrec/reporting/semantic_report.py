"""The health of a map of semantic ids: tables for the terminal, and one HTML page that needs no other file."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from genrec.reporting import formats
from genrec.reporting.document import Cell, Document, Section, Table, columns, number_cell, words
from genrec.reporting.document_page import document_page
from genrec.reporting.tables import Row
from genrec.semantic.health import Health


def health_page(health: Health, name: str, accepted: Sequence[str]) -> str:
    """The HTML page of a map called `name`; `accepted` are thresholds that it does not reach."""
    return document_page(health_document(health, name, accepted))


def health_summary(health: Health) -> Group:
    """Printable tables: the facts, then each table of the page."""
    parts: list[RenderableType] = [_facts(key_figures(health) + more_figures(health))]
    parts += [_console_table(table) for table in health_tables(health)]
    return Group(*parts)


def health_document(health: Health, name: str, accepted: Sequence[str] = ()) -> Document:
    """What the page says."""
    level_table, *others = health_tables(health)
    sections = [Section("levels", "Levels", tables=(level_table,))]
    for place, table in enumerate(others):
        sections.append(Section(f"more-{place}", table.title, text=(table.text,), tables=(_untitled(table),)))
    sections.append(Section("figures", "Figures", protocol=more_figures(health)))
    return Document(
        kind="semantic ids",
        title=name,
        lead=f"Codes for {formats.count(health.num_items)} items, {_sizes(health)}.",
        summary=tuple(_sentences(health)),
        figures=key_figures(health),
        sections=tuple(sections),
        alerts=tuple(f"Accepted although it is beyond a threshold: {text}." for text in accepted),
        command="genrec tokenize",
    )


def key_figures(health: Health) -> tuple[Row, ...]:
    """The handful of numbers to remember."""
    rows = [
        Row("Items", formats.count(health.num_items), ""),
        Row("Collision rate", formats.percent(health.collision_rate), "share of items with another item's codes"),
        Row("Largest bucket", formats.count(health.max_bucket), "items with one and the same codes"),
        Row("Least code usage", formats.percent(min(level.usage for level in health.levels)), "of any level"),
    ]
    if health.neighbours is not None and health.neighbours.kept is not None:
        text = f"of the {health.neighbours.num_neighbours} nearest items, nearest by their codes too"
        rows.append(Row("Neighbours kept", formats.percent(health.neighbours.kept), text))
    return tuple(rows)


def more_figures(health: Health) -> tuple[Row, ...]:
    """The others."""
    return (
        Row("Different tuples", formats.count(health.distinct), "before collisions were resolved"),
        Row("Items moved", formats.count(health.num_moved), "got another code, or a number above 0, for a collision"),
        Row("Items without a vector", formats.percent(health.without_vector), "their codes are those of zeros"),
        Row("Levels of the map", " x ".join(map(str, health.final_sizes)), "codes of each, collisions resolved"),
    )


def health_tables(health: Health) -> tuple[Table, ...]:
    """Levels, buckets, and what codes keep of neighbours and types."""
    tables = [_levels(health), _buckets(health)]
    if health.neighbours is not None:
        tables.append(_neighbours(health))
    if health.purity is not None:
        tables.append(_purity(health))
    return tuple(tables)


def _levels(health: Health) -> Table:
    lines = []
    for place, level in enumerate(health.levels):
        error = health.reconstruction[place] if health.reconstruction else None
        lines.append(
            (
                number_cell(place + 1, str(place + 1)),
                number_cell(level.size, formats.count(level.size)),
                number_cell(level.used, formats.count(level.used)),
                number_cell(level.usage, formats.percent(level.usage)),
                number_cell(level.entropy_bits, f"{level.entropy_bits:.2f}"),
                number_cell(level.evenness, formats.percent(level.evenness)),
                number_cell(error, formats.number(error)),
            )
        )
    text = (
        "Evenness is the entropy over that of equal shares. The error is what is left of the vectors' variance with "
        "this level and those before it."
    )
    heads = columns("Level", "Codes", "Used", "Usage", "Entropy, bits", "Evenness", "Error so far")
    return Table("Levels", heads, tuple(lines), text)


def _buckets(health: Health) -> Table:
    lines = tuple(
        (Cell(name, float(place)), number_cell(number, formats.count(number)))
        for place, (name, number) in enumerate(health.buckets.items())
    )
    text = "Items with the same codes are a bucket; a bucket of one is an item that its codes tell from all others."
    return Table("Buckets", columns("Items in a bucket", "Buckets"), lines, text)


def _neighbours(health: Health) -> Table:
    nearest = health.neighbours
    assert nearest is not None
    lines = tuple(
        (
            words(_prefix(place)),
            number_cell(share, formats.percent(share)),
            number_cell(chance, formats.percent(chance)),
        )
        for place, (share, chance) in enumerate(zip(nearest.shared, nearest.shared_by_chance, strict=True))
    )
    text = (
        f"How often an item and one of its {nearest.num_neighbours} nearest have the same first codes, beside any two "
        f"items; of {formats.count(nearest.num_items)} items."
    )
    return Table("Neighbours", columns("The same", "Nearest items", "Any two"), lines, text)


def _purity(health: Health) -> Table:
    assert health.purity is not None
    chance = health.purity_by_chance
    lines = tuple(
        (
            words(_prefix(place)),
            number_cell(share, formats.percent(share)),
            number_cell(chance, formats.percent(chance)),
        )
        for place, share in enumerate(health.purity)
    )
    text = "Share of items whose type is the most common one among the items with the same first codes."
    return Table("Types", columns("The same", "Of that type", "Without codes"), lines, text)


def _sentences(health: Health) -> list[str]:
    found = [
        f"{formats.percent(health.collision_rate)} of the items share all codes with another; the largest such bucket "
        f"has {formats.count(health.max_bucket)}."
    ]
    if health.reconstruction:
        found.append(f"The codes leave {formats.percent(health.reconstruction[-1])} of the vectors' variance.")
    if health.neighbours is not None:
        share, chance = health.neighbours.shared[0], health.neighbours.shared_by_chance[0]
        found.append(
            f"Near items share the first code in {formats.percent(share)} of cases, any two items in "
            f"{formats.percent(chance)}."
        )
    return found


def _prefix(place: int) -> str:
    return "first code" if place == 0 else f"first {place + 1} codes"


def _sizes(health: Health) -> str:
    return " x ".join(str(level.size) for level in health.levels) + " before collisions are resolved"


def _untitled(table: Table) -> Table:
    return Table(table.title, table.columns, table.lines)


def _facts(rows: Sequence[Row]) -> Padding:
    table = RichTable(
        title="Codes", title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(Text(row.name), Text(row.value), Text(row.hint))
    return Padding(table, (0, 0, 1, 0))


def _console_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.name, justify="left" if column.words else "right")
    for line in table.lines:
        shown.add_row(*(Text(cell.text) for cell in line))
    return shown
