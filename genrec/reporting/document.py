"""What a report of several runs, of benchmarks or of a difference says, before it is HTML or Markdown.

A reader of results (bench_sections.py, runs_sections.py, ...) makes sections; document_page.py and markdown.py lay out
whatever they hold. A new kind of result writes sections of its own and needs no new page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrec.reporting import formats
from genrec.reporting.plots import Chart
from genrec.reporting.tables import Group, Row


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column; columns of words stand left, numbers right."""

    name: str
    words: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and what a sorted column goes by: a number, or the text where there is none."""

    text: str
    sort: float | None = None
    strong: bool = False

    @property
    def sort_key(self) -> str:
        """The value of the cell's `data-sort`; a dash, for no value, has an empty one and sorts last."""
        if self.sort is not None:
            return repr(float(self.sort))
        return "" if self.text == formats.MISSING else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """A table that readers may sort; the first cell of a line names it."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[Cell, ...], ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report: a heading and what is below it, in the order of the fields; `folded` opens on a click."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    protocol: tuple[Row, ...] = ()
    groups: tuple[Group, ...] = ()
    folded: tuple[Group, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report: `summary` holds sentences, `figures` the numbers to remember, `command` what wrote it."""

    kind: str
    title: str
    lead: str
    summary: tuple[str, ...]
    figures: tuple[Row, ...]
    sections: tuple[Section, ...]
    alerts: tuple[str, ...] = ()
    command: str = "genrec report"


def words(text: Any) -> Cell:
    """A cell of words."""
    return Cell(str(text))


def number_cell(value: float | None, text: str | None = None, *, strong: bool = False) -> Cell:
    """A cell that sorts by its number; `text` is what it shows, else four digits."""
    return Cell(formats.number(value) if text is None else text, value, strong)


def columns(*names: str, worded: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns by name; the first one and those of `worded` hold words."""
    return tuple(Column(name, place == 0 or name in worded) for place, name in enumerate(names))
