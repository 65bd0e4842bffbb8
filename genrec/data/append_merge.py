"""One task of `genrec prepare --append`: old sequences and new events of their users become one new sequence file."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import Split
from genrec.data.manifest import SequenceFile, describe_sequence_file, length_histogram
from genrec.data.schema import SEQUENCES_DIR, VALUES, sequences_schema
from genrec.data.sequence_files import read_row_group, write_row_group
from genrec.data.sequences import row_group_ends
from genrec.data.split import history_ends
from genrec.errors import DataError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Events:
    """Events of some users, one user after another, each in the order of time.

    users    [num_users]       user indices
    offsets  [num_users + 1]   borders of the users
    items    [num_events]      item indices
    times    [num_events]      seconds
    actions  [num_events]      codes, 0 for none
    values   [num_events]      NaN where unknown; None where the set does not keep them
    """

    users: IntArray
    offsets: IntArray
    items: npt.NDArray[np.int32]
    times: IntArray
    actions: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32] | None = None

    def rows(self) -> IntArray:
        """The place of each event's user, [num_events]."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.offsets))

    def take(self, places: IntArray) -> "Events":
        """The users at `places`, in that order."""
        lengths = np.diff(self.offsets)[places]
        offsets = _borders(lengths)
        index = np.repeat(self.offsets[:-1][places] - offsets[:-1], lengths) + np.arange(offsets[-1])
        values = None if self.values is None else self.values[index]
        return Events(self.users[places], offsets, self.items[index], self.times[index], self.actions[index], values)


@dataclass(frozen=True, slots=True)
class MergeTask:
    """What goes into the new sequence file `number` of the set in `target`.

    `groups` are row groups (path, group) of the set in `source`; of their users those with new events go in, or all of
    those in files that are `compacted`. `new_users` are users of `new` that are in no row group. `ties_matter` says
    that an old and a new event of a user cannot be ordered when they happen in the same second.
    """

    source: Path
    target: Path
    number: int
    groups: tuple[tuple[str, int], ...]
    compacted: frozenset[str]
    new_users: IntArray
    split: Split
    row_group_users: int
    ties_matter: bool


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The file, and how it changes the set: users by length bucket, and training events of each item index."""

    file: SequenceFile
    lengths: Counter[int]
    train_counts: IntArray


def merge(task: MergeTask, new: Events, place_of_user: npt.NDArray[np.int32], num_items: int) -> MergeResult:
    """Writes one file. `place_of_user` [num_users] is the place of a user in `new`, -1 without new events.

    Raises DataError when an old and a new event have no order.
    """
    old = _read_old(task, place_of_user, sequences_schema(values=new.values is not None))
    num_old = len(old.users)
    users = np.concatenate([old.users, task.new_users])
    places = place_of_user[users].astype(np.int64)
    has_new = np.flatnonzero(places >= 0)
    added = new.take(places[has_new])
    rows = np.concatenate([old.rows(), has_new[added.rows()]])
    times = np.concatenate([old.times, added.times])
    order = stable_order(rows, times)
    if task.ties_matter:
        _check_ties(rows[order], times[order], order >= len(old.times))
    lengths = np.bincount(rows, minlength=len(users))
    merged = Events(
        users,
        _borders(lengths),
        np.concatenate([old.items, added.items])[order],
        times[order],
        np.concatenate([old.actions, added.actions])[order],
        None if old.values is None or added.values is None else np.concatenate([old.values, added.values])[order],
    )
    name = f"part-{task.number:05d}.parquet"
    _write(task.target / SEQUENCES_DIR / name, merged, task.row_group_users)
    change = Counter(length_histogram(lengths))
    change.subtract(length_histogram(lengths_of(old)) if num_old else {})
    return MergeResult(
        file=describe_sequence_file(task.target, name),
        lengths=change,
        train_counts=_train_counts(merged, task.split, num_items) - _train_counts(old, task.split, num_items),
    )


def stable_order(rows: IntArray, times: IntArray) -> IntArray:
    """The order by row, then by time, then as it is."""
    first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
    if (int(rows.max()) + 1) * span < np.iinfo(np.int64).max:  # one key sorts several times as fast as two
        return np.argsort(rows * span + (times - first), kind="stable")
    return np.lexsort((times, rows))


def lengths_of(events: Events) -> IntArray:
    """Events of each user, [num_users]."""
    return np.diff(events.offsets)


def _read_old(task: MergeTask, place_of_user: npt.NDArray[np.int32], schema: pa.Schema) -> Events:
    tables = []
    for path, group in task.groups:
        table = read_row_group(task.source, path, group, schema.names)
        if path not in task.compacted:
            table = table.filter(pa.array(place_of_user[table["user"].to_numpy()] >= 0))
        tables.append(table)
    table = pa.concat_tables([schema.empty_table(), *tables])
    return Events(
        users=table["user"].to_numpy(),
        offsets=_borders(table["length"].to_numpy().astype(np.int64)),
        items=_flat(table["items"]),
        times=_flat(table["times"]),
        actions=_flat(table["actions"]),
        values=_flat(table[VALUES]) if VALUES in schema.names else None,
    )


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])


def _check_ties(rows: IntArray, times: IntArray, is_new: npt.NDArray[np.bool_]) -> None:
    tied = (rows[1:] == rows[:-1]) & (times[1:] == times[:-1]) & (is_new[1:] != is_new[:-1])
    if tied.any():
        raise DataError(
            f"{int(tied.sum()):,} times a new event happens in the same second as a prepared one of its user, and "
            "which came first is no longer known (a new file's name sorts before a prepared one's, or the times have "
            "fractions of seconds); run `genrec prepare CONFIG --overwrite` to prepare everything."
        )


def _train_counts(events: Events, split: Split, num_items: int) -> IntArray:
    ends, _ = history_ends(split, "train", events.times, events.offsets)
    position = np.arange(len(events.items)) - np.repeat(events.offsets[:-1], lengths_of(events))
    in_training = position < np.repeat(ends, lengths_of(events))
    return np.bincount(events.items[in_training], minlength=num_items + 1)


def _write(path: Path, events: Events, max_users: int) -> None:
    lengths, schema = lengths_of(events), sequences_schema(values=events.values is not None)
    with pq.ParquetWriter(str(path), schema, compression="zstd", use_dictionary=False) as writer:
        start = 0
        for end in row_group_ends(lengths, max_users):
            first, last = events.offsets[start], events.offsets[end]
            write_row_group(
                writer,
                events.users[start:end],
                lengths[start:end],
                events.items[first:last],
                events.times[first:last],
                events.actions[first:last],
                None if events.values is None else events.values[first:last],
            )
            start = end


def _borders(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
