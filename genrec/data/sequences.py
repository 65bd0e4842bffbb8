"""Last pass: one task turns a shard of events into sequences, one row a user, in one Parquet file.

Inside a shard users are ordered by the hash of their id, so that neighbours in a row group have nothing in common;
events of a user are in the order of time, and of the log where times are equal.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.config import GlobalTimeSplit, LeaveOneOutSplit
from genrec.data.filters import load_ids
from genrec.data.scatter import Piece, load_shard
from genrec.data.schema import SEQUENCES_SCHEMA
from genrec.data.split import history_ends
from genrec.data.stable_hash import hash_ids
from genrec.data.timestamps import MICROSECONDS

ROW_GROUP_EVENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class SequenceTask:
    """One shard, the items by index (an Arrow file), and the file to write."""

    pieces: tuple[Piece, ...]
    integer_users: bool
    integer_items: bool
    min_user_events: int
    items: Path
    actions: tuple[str, ...]
    split: LeaveOneOutSplit | GlobalTimeSplit
    first_user: int
    row_group_users: int
    path: Path


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What one shard holds. `users` are original ids in the order of the rows.

    `train_items` and `train_counts` say how often each item index occurs in what training may see; `lengths` maps the
    upper bound of a length bucket (power of two) to its users.
    """

    users: pa.Array
    num_events: int
    first_time: int
    last_time: int
    lengths: dict[int, int]
    train_items: npt.NDArray[np.int64]
    train_counts: npt.NDArray[np.int64]


def write_sequences(task: SequenceTask) -> SequenceResult | None:
    """Writes one shard's sequences; None, and no file, when none of its users stays."""
    events = load_shard(
        task.pieces,
        ["user", "item", "time", "action"],
        integer_users=task.integer_users,
        integer_items=task.integer_items,
    )
    index_of = pc.index_in(events.item_ids, value_set=load_ids(task.items)).fill_null(-1).to_numpy() + 1
    items = index_of[events.items]
    stays = items > 0
    per_user = np.bincount(events.users[stays], minlength=len(events.user_ids))
    kept = np.flatnonzero((per_user >= task.min_user_events) & (per_user > 0))
    if not len(kept):
        return None
    kept = kept[_hash_order(events.user_ids.take(pa.array(kept)))]
    row_of_user = np.full(len(events.user_ids), -1, dtype=np.int64)
    row_of_user[kept] = np.arange(len(kept))
    stays &= row_of_user[events.users] >= 0

    chosen = np.flatnonzero(stays)
    rows = row_of_user[events.users[chosen]]
    moments = events.times[chosen] if events.times is not None else None
    order = np.argsort(rows, kind="stable") if moments is None else np.lexsort((moments, rows))  # both are stable
    chosen = chosen[order]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_user[kept])])
    times = (
        moments[order] // MICROSECONDS
        if moments is not None
        else np.arange(len(chosen)) - np.repeat(offsets[:-1], np.diff(offsets))
    )
    actions = np.zeros(len(chosen), dtype=np.uint8)
    if events.actions is not None:
        codes = pc.index_in(events.actions, value_set=pa.array(task.actions, pa.string())).fill_null(-1)
        actions = (codes.to_numpy()[chosen] + 1).astype(np.uint8)

    _write(task, offsets, items[chosen].astype(np.int32), times, actions)
    ends, _ = history_ends(task.split, "train", times, offsets)
    in_training = np.arange(len(chosen)) < np.repeat(offsets[:-1] + ends, np.diff(offsets))
    train_items, train_counts = np.unique(items[chosen][in_training], return_counts=True)
    return SequenceResult(
        users=events.user_ids.take(pa.array(kept)),
        num_events=len(chosen),
        first_time=int(times.min()),
        last_time=int(times.max()),
        lengths=_length_histogram(np.diff(offsets)),
        train_items=train_items.astype(np.int64),
        train_counts=train_counts.astype(np.int64),
    )


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


def _hash_order(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Positions of `ids` by rising hash; equal hashes by rising id."""
    table = pa.table({"hash": pa.array(hash_ids(ids)), "id": ids})
    order: npt.NDArray[np.int64] = (
        pc.sort_indices(table, sort_keys=[("hash", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
    )
    return order


def _write(
    task: SequenceTask,
    offsets: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
    times: npt.NDArray[np.int64],
    actions: npt.NDArray[np.uint8],
) -> None:
    lengths = np.diff(offsets)
    with pq.ParquetWriter(str(task.path), SEQUENCES_SCHEMA, compression="zstd", use_dictionary=False) as writer:
        start = 0
        for end in row_group_ends(lengths, task.row_group_users):
            first, last = offsets[start], offsets[end]
            borders = pa.array((offsets[start : end + 1] - first).astype(np.int32))
            columns = [
                pa.array(np.arange(task.first_user + start, task.first_user + end)),
                pa.array(lengths[start:end].astype(np.int32)),
                *(
                    pa.ListArray.from_arrays(borders, pa.array(values[first:last]))
                    for values in (items, times, actions)
                ),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SEQUENCES_SCHEMA))
            start = end


def _length_histogram(lengths: npt.NDArray[np.int64]) -> dict[int, int]:
    buckets, users = np.unique(np.ceil(np.log2(lengths)).astype(np.int64), return_counts=True)
    return {int(2**bucket): int(count) for bucket, count in zip(buckets, users, strict=True)}
