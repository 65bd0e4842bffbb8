"""First pass over a log: one task reads one part, checks its rows and sorts its events into shards by their user.

What it writes is in `runs.py`. A task holds one run at a time, however large its part is.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.log_parts import LogPart, read_part
from genrec.data.rejected import RejectedWriter
from genrec.data.runs import Piece, Run, write_run
from genrec.data.timestamps import MICROSECONDS
from genrec.data.validate import check_block

RUN_EVENTS = 2_000_000


@dataclass(frozen=True, slots=True)
class ScatterTask:
    """One part, and where its events and its bad rows go."""

    index: int
    part: LogPart
    num_shards: int
    time_unit: str
    min_value: float | None
    events_dir: Path
    rejected_dir: Path
    max_time: int | None = None
    keep_values: bool = False

    @property
    def rejected_path(self) -> Path:
        """The file of the part's bad rows, when it has any."""
        return self.rejected_dir / f"part-{self.index:05d}.parquet"


@dataclass(frozen=True, slots=True)
class ScatterResult:
    """What one part held. `integer_users` and `integer_items`: every id is the text of a 64-bit integer.

    `runs` are the files of its runs, `pieces` the shards in them, in the order of the log.
    `has_subseconds`: some of its events do not fall on a whole second.
    """

    num_rows: int
    num_small_values: int
    rejected: dict[str, int]
    examples: dict[str, str]
    integer_users: bool
    integer_items: bool
    actions: dict[str, int]
    runs: tuple[str, ...]
    pieces: tuple[Piece, ...]
    has_subseconds: bool = False


def read_events(
    part: LogPart,
    rejected: RejectedWriter,
    *,
    time_unit: str,
    min_value: float | None,
    max_time: int | None,
    keep_values: bool,
) -> Iterator[tuple[pa.Table, int, int]]:
    """Blocks of a part: its events, the rows it had, and how many had too small a value.

    Events have their values with `keep_values` alone. Bad rows and lines go to `rejected`. Raises DataError when the
    part is damaged.
    """
    num_read = 0
    for block in read_part(part, rejected.write_lines):
        first_row = part.first_row + num_read
        checked = check_block(block, time_unit, part.label, first_row, max_time)
        num_read += len(block)
        rejected.write(checked.rejected)
        events = checked.events
        if min_value is not None:
            events = events.filter(pc.field("value") >= min_value)
        num_small = len(checked.events) - len(events)
        if "value" in events.column_names and not keep_values:
            events = events.drop_columns(["value"])
        yield events, len(block), num_small


def scatter(task: ScatterTask) -> ScatterResult:
    """Reads one part into its runs; raises DataError when the part is damaged."""
    runs: list[Run] = []
    blocks: list[pa.Table] = []
    num_read = num_small = num_waiting = 0
    has_subseconds = False

    def write_blocks() -> None:
        file = task.events_dir / f"{task.index:05d}-{len(runs):04d}"
        runs.append(write_run(str(file), pa.concat_tables(blocks), task.num_shards))
        blocks.clear()

    with RejectedWriter(task.rejected_path, task.part.label) as rejected:
        for events, num_block_rows, num_block_small in read_events(
            task.part,
            rejected,
            time_unit=task.time_unit,
            min_value=task.min_value,
            max_time=task.max_time,
            keep_values=task.keep_values,
        ):
            num_read += num_block_rows
            num_small += num_block_small
            if "time" in events.column_names and not has_subseconds:
                has_subseconds = bool((events["time"].to_numpy() % MICROSECONDS).any())
            blocks.append(events)
            num_waiting += len(events)
            if num_waiting >= RUN_EVENTS:
                write_blocks()
                num_waiting = 0
        if num_waiting:
            write_blocks()
    actions: Counter[str] = Counter()
    for run in runs:
        actions.update(run.actions)
    return ScatterResult(
        num_rows=num_read + rejected.num_lines,
        num_small_values=num_small,
        rejected=dict(rejected.counts),
        examples=rejected.examples,
        integer_users=all(run.integer_users for run in runs),
        integer_items=all(run.integer_items for run in runs),
        actions=dict(actions),
        runs=tuple(run.file for run in runs),
        pieces=tuple(piece for run in runs for piece in run.pieces),
        has_subseconds=has_subseconds,
    )
