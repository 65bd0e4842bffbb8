"""A report as Markdown: the same summary, tables, protocol, environment and commands; a figure is its caption."""

from collections.abc import Iterator, Sequence

from genrec.reporting.document import Document, Section, Table
from genrec.reporting.tables import Row


def document_markdown(document: Document) -> str:
    """The report as Markdown with tables in the style of GitHub, ending in a newline."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"# {document.title}"
    yield document.lead
    yield from (f"> **Note:** {alert}" for alert in document.alerts)
    if document.figures:
        yield _rows(document.figures)
    if document.summary:
        yield "## Summary"
        yield "\n".join(f"* {sentence}" for sentence in document.summary)
    for section in document.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield from section.text
    yield from (f"> **Note:** {alert}" for alert in section.alerts)
    if section.charts:
        shown = ((chart.title, chart.value, chart.caption) for chart in section.charts)
        yield "\n".join(f"* {title}: {value + '. ' if value else ''}{caption}" for title, value, caption in shown)
    for table in section.tables:
        yield from _table(table)
    if section.protocol:
        yield _rows(section.protocol)
    for group in (*section.groups, *section.folded):
        yield f"### {group.title}"
        yield _rows(group.rows)
    if section.commands:
        yield "\n".join(["```", *section.commands, "```"])


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {table.title}"
    if table.text:
        yield table.text
    head = [column.name for column in table.columns]
    rules = ["---" if column.words else "---:" for column in table.columns]
    lines = [
        [f"**{_escaped(cell.text)}**" if cell.strong else _escaped(cell.text) for cell in row] for row in table.lines
    ]
    yield _grid(head, rules, lines)


def _rows(rows: Sequence[Row]) -> str:
    lines = [[_escaped(row.name), _escaped(row.value), _escaped(row.hint)] for row in rows]
    if not any(row.hint for row in rows):
        return _grid(["", ""], ["---", "---"], [line[:2] for line in lines])
    return _grid(["", "", ""], ["---"] * 3, lines)


def _grid(head: Sequence[str], rules: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rules, *lines))


def _escaped(text: str) -> str:
    """Text for a cell: nothing in it may end the cell or the line, or be taken for markup."""
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
