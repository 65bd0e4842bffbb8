"""Bad files of a log: put aside as a whole and counted by reason, up to `data.max_rejected_files` of them.

A file is used whole or not at all: one that turns out damaged half-way through loses the events and the bad rows that
were read from it before, too.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from genrec.data.log_files import FileError, LogFile
from genrec.data.log_parts import LogPart
from genrec.data.manifest import RejectedFile
from genrec.data.scatter import ScatterResult, ScatterTask, scatter
from genrec.errors import DataError


class PartTask(Protocol):
    """A task that reads one part of a log and writes its bad rows to `rejected_path`."""

    @property
    def part(self) -> LogPart:
        """What is read."""

    @property
    def rejected_path(self) -> Path:
        """The file of the part's bad rows, when it has any."""


class PartCounts(Protocol):
    """What one part held: rows, bad rows by reason, and an example of each reason."""

    @property
    def num_rows(self) -> int:
        """Events, bad rows and filtered rows."""

    @property
    def rejected(self) -> dict[str, int]:
        """Bad rows by reason."""

    @property
    def examples(self) -> dict[str, str]:
        """The first bad row of each reason as text."""


ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Quarantine:
    """The bad files found so far, by name; `limit` is how many there may be."""

    limit: int
    files: dict[str, RejectedFile] = field(default_factory=dict)

    def add(self, file: LogFile, error: FileError) -> None:
        """Puts a file aside; raises its own error when there may be none, and DataError beyond the limit."""
        if self.limit == 0:
            raise error
        self.files.setdefault(file.name, RejectedFile(path=file.name, reason=error.reason, message=str(error)))
        if len(self.files) > self.limit:
            lines = [f"  {bad.reason:<20}{bad.message}" for bad in self.files.values()]
            raise DataError(
                f"More than data.max_rejected_files = {self.limit} files are bad; mend the log or raise it:\n"
                + "\n".join(lines)
            )


@dataclass(frozen=True, slots=True)
class BadPart:
    """What a task returns for a part that cannot be read: the error of its file, which the job judges."""

    error: FileError


def scatter_or_reject(task: ScatterTask) -> ScatterResult | BadPart:
    """What one part held, or why its file cannot be used."""
    try:
        return scatter(task)
    except FileError as error:
        return BadPart(error)


def settle(tasks: Sequence[PartTask], outcomes: Iterable[ResultT | BadPart], quarantine: Quarantine) -> list[ResultT]:
    """The results that count: those of files of which every part could be read. What the others wrote is deleted.

    Raises what `Quarantine.add` raises, as soon as the outcome of the file too many is there.
    """
    results: list[tuple[PartTask, ResultT]] = []
    with ExitStack() as stack:
        if isinstance(outcomes, Generator):
            stack.callback(outcomes.close)  # ends the tasks that still run when a file is one too many
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, BadPart):
                quarantine.add(task.part.file, outcome.error)
                task.rejected_path.unlink(missing_ok=True)
            else:
                results.append((task, outcome))
    good = []
    for task, result in results:
        if task.part.file.name in quarantine.files:
            task.rejected_path.unlink(missing_ok=True)
        else:
            good.append(result)
    return good


def check_rejected_rows(results: Sequence[PartCounts], max_fraction: float) -> dict[str, int]:
    """Bad rows by reason; raises DataError with a table of them when they are more than `max_fraction` of the rows."""
    num_rows = sum(result.num_rows for result in results)
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for result in results:
        rejected.update(result.rejected)
        examples = result.examples | examples
    num_bad = rejected.total()
    if num_bad > max_fraction * num_rows:
        lines = [f"  {count:>12,}  {reason:<24}{examples[reason]}" for reason, count in rejected.most_common()]
        raise DataError(
            f"{num_bad:,} of {num_rows:,} rows are bad, more than data.max_rejected_fraction = {max_fraction}; mend "
            "the log (integer times count data.source.columns.time_unit), or raise it to keep the rows that are good:\n"
            + "\n".join(lines)
        )
    return dict(rejected)
