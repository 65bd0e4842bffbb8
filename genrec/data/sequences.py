"""Last pass: one task turns a shard of events into sequences, one row a user, in one Parquet file.

Inside a shard users are ordered by the hash of their id, so that neighbours in a row group have nothing in common;
events of a user are in the order of time, and of the log where times are equal.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import GlobalTimeSplit, Split
from genrec.data.filters import before, count_numbers, users_that_stay
from genrec.data.manifest import SequenceFile, describe_sequence_file, length_histogram
from genrec.data.runs import Piece, load_shard
from genrec.data.schema import sequences_schema
from genrec.data.split import history_ends
from genrec.data.timestamps import MICROSECONDS

ROW_GROUP_EVENTS = 1_000_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceTask:
    """One shard, the item indices by position in the vocabulary (a .npy file, 0 is dropped), and the file to write.

    `row_group_users` is the most users of a row group; `users_path` receives the original ids in the order of the rows.
    """

    pieces: tuple[Piece, ...]
    integer_users: bool
    min_user_events: int
    item_indices: Path
    num_items: int
    actions: tuple[str, ...]
    split: Split
    first_user: int
    row_group_users: int
    path: Path
    users_path: Path


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What one shard holds; its user ids are in `users_path`.

    `train_items` and `train_counts` say how often each item index occurs in what training may see; `lengths` maps the
    upper bound of a length bucket (power of two) to its users.
    """

    file: SequenceFile
    users_path: Path
    num_users: int
    num_events: int
    first_time: int
    last_time: int
    lengths: dict[int, int]
    train_items: npt.NDArray[np.int64]
    train_counts: npt.NDArray[np.int64]


def write_sequences(task: SequenceTask) -> SequenceResult | None:
    """Writes one shard's sequences; None, and no file, when none of its users stays."""
    events = load_shard(
        task.pieces, ["time", "action", "value"], integer_users=task.integer_users, actions=task.actions
    )
    items = np.load(task.item_indices, mmap_mode="r", allow_pickle=False)[events.items]
    stays = items > 0
    in_time = before(events.times, train_until(task.split))
    user_stays = users_that_stay(events.users, stays, in_time, len(events.user_ids), task.min_user_events)
    stays &= user_stays[events.users]
    per_user = np.bincount(events.users[stays], minlength=len(events.user_ids))
    kept_users = np.flatnonzero(user_stays)
    if not len(kept_users):
        return None
    users, times, actions, values = events.users, events.times, events.actions, events.values
    if not stays.all():
        users, items = users[stays], items[stays]
        times, actions, values = (None if column is None else column[stays] for column in (times, actions, values))
        users = (np.cumsum(user_stays) - 1)[users]
    order = time_order(users, times)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_user[kept_users])])
    items = items[order]
    seconds = (
        times[order] // MICROSECONDS
        if times is not None
        else np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))
    )
    actions = actions[order] if actions is not None else np.zeros(len(items), dtype=np.uint8)
    kept = [] if values is None else [values[order]]
    _write(task, offsets, [items, seconds, actions, *kept])
    _write_users(task.users_path, events.user_ids.take(pa.array(kept_users)))
    ends, _ = history_ends(task.split, "train", seconds, offsets)
    in_training = np.arange(len(items)) < np.repeat(offsets[:-1] + ends, np.diff(offsets))
    train_items, train_counts = count_numbers(items[in_training], task.num_items + 1)
    return SequenceResult(
        file=describe_sequence_file(task.path.parents[1], task.path.name),
        users_path=task.users_path,
        num_users=len(kept_users),
        num_events=len(items),
        first_time=int(seconds.min()),
        last_time=int(seconds.max()),
        lengths=length_histogram(np.diff(offsets)),
        train_items=train_items,
        train_counts=train_counts,
    )


def train_until(split: Split) -> int | None:
    """The microsecond that ends what training may see of everyone; None where the split goes by events."""
    return split.validation_from * MICROSECONDS if isinstance(split, GlobalTimeSplit) else None


def time_order(rows: npt.NDArray[np.integer[Any]], times: Integers | None) -> Integers:
    """Positions of events by row, then by time where there are times; equal ones keep their order."""
    by_row = _stable_order(rows)
    if times is None:
        return by_row
    ordered, moments = rows[by_row], times[by_row]
    if not ((moments[1:] < moments[:-1]) & (ordered[1:] == ordered[:-1])).any():
        return by_row  # the log was in the order of time already, as most are
    by_time = _stable_order(times - times.min())
    return by_time[_stable_order(rows[by_time])]


def _stable_order(numbers: npt.NDArray[np.integer[Any]]) -> Integers:
    """Positions of numbers >= 0 by rising number: a radix sort, as numpy has it for 16 bits."""
    order = np.arange(len(numbers))
    for shift in range(0, int(numbers.max()).bit_length(), 16):
        digits = ((numbers >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def row_group_ends(lengths: npt.NDArray[np.int64], max_users: int) -> list[int]:
    """Where row groups end: `max_users` users, or fewer when they have more than ROW_GROUP_EVENTS events together."""
    cumulated = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    ends: list[int] = []
    start = 0
    while start < len(lengths):
        fitting = int(np.searchsorted(cumulated, cumulated[start] + ROW_GROUP_EVENTS, side="right")) - 1
        start = min(max(fitting, start + 1), start + max_users, len(lengths))
        ends.append(start)
    return ends


def _write_users(path: Path, user_ids: pa.Array) -> None:
    with pa.ipc.new_file(str(path), pa.schema([("user", user_ids.type)])) as writer:
        writer.write_batch(pa.record_batch([user_ids], ["user"]))


def load_shard_users(path: Path) -> pa.Array:
    """The original ids of a shard's users in the order of its rows."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)["user"]


def _write(task: SequenceTask, offsets: npt.NDArray[np.int64], events: list[npt.NDArray[Any]]) -> None:
    lengths, schema = np.diff(offsets), sequences_schema(values=len(events) > 3)
    with pq.ParquetWriter(str(task.path), schema, compression="zstd", use_dictionary=False) as writer:
        start = 0
        for end in row_group_ends(lengths, task.row_group_users):
            first, last = offsets[start], offsets[end]
            borders = pa.array((offsets[start : end + 1] - first).astype(np.int32))
            columns = [
                pa.array(np.arange(task.first_user + start, task.first_user + end)),
                pa.array(lengths[start:end].astype(np.int32)),
                *(pa.ListArray.from_arrays(borders, pa.array(column[first:last])) for column in events),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            start = end
