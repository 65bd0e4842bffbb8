"""A difference as a report, and for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group as Shown
from rich.table import Table as RichTable
from rich.text import Text

from genrec.reporting import formats
from genrec.reporting.diff import Diff
from genrec.reporting.document import Cell, Document, Section, Table, columns, number_cell, words
from genrec.reporting.tables import Group, Row
from genrec.reporting.verdicts import ONE_READING, WITHIN_NOISE, Change, percent_change

MAX_NAMED = 12  # changes in the summary


def diff_document(diff: Diff) -> Document:
    """The report: verdicts first, then every number, then what was set and installed otherwise."""
    verdicts = Section("verdicts", "What changed", text=(_rule(diff), *diff.notes), tables=(_table(diff.changes),))
    said = (_differences("settings", "Settings", diff.settings), _differences("versions", "Versions", diff.versions))
    return Document(
        kind="difference",
        title=f"{diff.before.name} → {diff.after.name}" if diff.before.name != diff.after.name else diff.before.name,
        lead=f"From {diff.before.path} (commit {diff.before.commit}) to {diff.after.path} (commit {diff.after.commit})",
        summary=tuple(summary(diff)),
        figures=_figures(diff),
        sections=(verdicts, *said, _machine(diff)),
        alerts=tuple(machine_alert(diff)),
    )


def summary(diff: Diff) -> list[str]:
    """The changes beyond noise, one sentence each, the regressions first."""
    regressions = diff.regressions
    others = [c for c in diff.changes if c.verdict not in (WITHIN_NOISE, ONE_READING) and not c.is_regression]
    quiet = sum(change.verdict == WITHIN_NOISE for change in diff.changes)
    head = [f"{_number(len(regressions), 'regression')}; {_number(quiet, 'number')} within noise."]
    named = [change.sentence for change in (*regressions, *others)]
    more = [f"And {len(named) - MAX_NAMED} more, in the table."] if len(named) > MAX_NAMED else []
    return [*head, *named[:MAX_NAMED], *more]


def machine_alert(diff: Diff) -> list[str]:
    """A warning when the two were measured on different machines."""
    if not diff.other_machine:
        return []
    return [
        f"Measured on different machines ({'; '.join(diff.other_machine)}): a change of time or memory may be the "
        "machine's."
    ]


def diff_summary(diff: Diff) -> Shown:
    """The difference for the terminal."""
    table = RichTable(
        title="What changed", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for place, name in enumerate(("", "", "Before", "After", "Change", "Verdict")):
        table.add_column(name, justify="right" if place in (2, 3, 4) else "left")
    for change in diff.changes:
        style = (
            "bold red" if change.is_regression else ("dim" if change.verdict in (WITHIN_NOISE, ONE_READING) else None)
        )
        cells = (change.subject, change.what, *change.texts, percent_change(change))
        table.add_row(*(Text(cell) for cell in (*cells, change.verdict)), style=style)
    changed = [f"{line}" for line in (*diff.settings, *diff.versions)]
    shown: list[Text | RichTable] = [Text(alert, style="bold red") for alert in machine_alert(diff)]
    shown += [table, *(Text(line) for line in changed), *(Text(note, style="dim") for note in diff.notes)]
    return Shown(*shown, Text(_rule(diff), style="dim"))


def _rule(diff: Diff) -> str:
    return (
        "A change counts when the intervals before and after do not overlap and it is over "
        f"{100 * diff.threshold:g}%; intervals run from the smallest to the largest reading, from eight readings on "
        "they are the bootstrap's 95% of the median. Of runs: quality by the paired bootstrap over users, throughput "
        "by the middle half of the log lines, peak memory by the threshold alone."
    )


def _number(count: int, word: str) -> str:
    return f"{count or 'No'} {word}{'' if count == 1 else 's'}"


def _figures(diff: Diff) -> tuple[Row, ...]:
    counts = {"Regressions": len(diff.regressions)}
    counts["Better"] = sum(c.verdict in ("better", "faster", "less memory") for c in diff.changes)
    counts["Within noise"] = sum(c.verdict == WITHIN_NOISE for c in diff.changes)
    counts["Settings changed"] = len(diff.settings)
    return tuple(Row(name, str(count), changed=name == "Regressions") for name, count in counts.items())


def _table(changes: Sequence[Change]) -> Table:
    head = ("Of", "What", "Verdict", "Change", "Before", "After", "Interval before", "Interval after")
    return Table("", columns(*head, worded=("What", "Verdict")), tuple(_line(change) for change in changes))


def _line(change: Change) -> tuple[Cell, ...]:
    values = zip(change.values, change.texts, strict=True)
    return (
        words(change.subject),
        words(change.what),
        Cell(change.verdict, strong=change.is_regression),
        number_cell(change.relative, percent_change(change)),
        *(number_cell(value, text) for value, text in values),
        *(words(interval) for interval in change.intervals),
    )


def _differences(id: str, title: str, lines: Sequence[str]) -> Section:
    rows = tuple(Row(name, change) for name, _, change in (line.partition(": ") for line in lines))
    if not rows:
        return Section(id, title, text=("The same on both sides.",))
    return Section(id, title, groups=(Group("before -> after", "", rows),))


def _machine(diff: Diff) -> Section:
    rows = tuple(Row(key, formats.plain(value)) for key, value in diff.after.machine.items())
    text = "The same on both sides." if not diff.other_machine else "; ".join(diff.other_machine)
    return Section("machine", "Machine", text=(text,), groups=(Group("after", "", rows),) if rows else ())
