"""First pass over a log: one task reads one part, checks its rows and sorts its events into shards by their user.

A task writes one Arrow file with the events of every shard in separate record batches, in the order of the log. Reading
the batches of a shard, part after part, therefore gives the shard's events in the order of the log, which is what a
stable sort by time needs. A task holds one block of the part at a time.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.log_parts import LogPart, read_part
from genrec.data.rejected import RejectedWriter
from genrec.data.stable_hash import hash_ids
from genrec.data.timestamps import MICROSECONDS
from genrec.data.validate import check_block

_COMPRESSION = pa.ipc.IpcWriteOptions(compression="lz4")


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

    @property
    def rejected_path(self) -> Path:
        """The file of the part's bad rows, when it has any."""
        return self.rejected_dir / f"part-{self.index:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Piece:
    """Events of one shard: a record batch of an Arrow file."""

    file: str
    batch: int
    shard: int
    num_events: int


@dataclass(frozen=True, slots=True)
class ScatterResult:
    """What one part held. `integer_users` and `integer_items`: every id is the text of a 64-bit integer.

    `has_subseconds`: some of its events do not fall on a whole second.
    """

    num_rows: int
    num_small_values: int
    rejected: dict[str, int]
    examples: dict[str, str]
    integer_users: bool
    integer_items: bool
    actions: dict[str, int]
    pieces: tuple[Piece, ...]
    has_subseconds: bool = False


@dataclass(frozen=True, slots=True)
class ShardEvents:
    """Events of one shard in the order of the log.

    `users` and `items` [num_events] are positions in `user_ids` and `item_ids`, which hold each id once. `times` are
    microseconds, `actions` names; None when the log has none.
    """

    users: npt.NDArray[np.int64]
    user_ids: pa.Array
    items: npt.NDArray[np.int64]
    item_ids: pa.Array
    times: npt.NDArray[np.int64] | None
    actions: pa.Array | None


def scatter(task: ScatterTask) -> ScatterResult:
    """Reads one part into its Arrow file; raises DataError when the part is damaged."""
    actions: Counter[str] = Counter()
    integer_users = integer_items = True
    has_subseconds = False
    num_read = num_small = 0
    with (
        _PieceWriter(task.events_dir / f"part-{task.index:05d}.arrow", task.num_shards) as writer,
        RejectedWriter(task.rejected_path, task.part.label) as rejected,
    ):
        for block in read_part(task.part, rejected.write_lines):
            first_row = task.part.first_row + num_read
            checked = check_block(block, task.time_unit, task.part.label, first_row, task.max_time)
            num_read += len(block)
            rejected.write(checked.rejected)
            events = checked.events
            if task.min_value is not None:
                kept = events.filter(pc.field("value") >= task.min_value)
                num_small += len(events) - len(kept)
                events = kept
            if "value" in events.column_names:
                events = events.drop_columns(["value"])
            if "action" in events.column_names:
                actions.update(_count_values(events["action"]))
            if "time" in events.column_names and not has_subseconds:
                has_subseconds = bool((events["time"].to_numpy() % MICROSECONDS).any())
            users = events["user"].combine_chunks().dictionary_encode()
            integer_users = integer_users and _is_integer_text(users.dictionary)
            integer_items = integer_items and _is_integer_text(pc.unique(events["item"]))
            writer.write(events, users)
    return ScatterResult(
        num_rows=num_read + rejected.num_lines,
        num_small_values=num_small,
        rejected=dict(rejected.counts),
        examples=rejected.examples,
        integer_users=integer_users,
        integer_items=integer_items,
        actions=dict(actions),
        pieces=tuple(writer.pieces),
        has_subseconds=has_subseconds,
    )


class _PieceWriter:
    """Writes blocks of events to one Arrow file, a record batch a shard."""

    def __init__(self, path: Path, num_shards: int) -> None:
        self.pieces: list[Piece] = []
        self._path = path
        self._num_shards = num_shards
        self._file: pa.ipc.RecordBatchFileWriter | None = None

    def __enter__(self) -> "_PieceWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, events: pa.Table, users: pa.DictionaryArray) -> None:
        """Adds a block; `users` are the dictionary-encoded users of its events."""
        if not len(events):
            return
        if self._file is None:
            self._file = pa.ipc.new_file(str(self._path), events.schema, options=_COMPRESSION)
        if self._num_shards == 1:
            self._write_piece(events, 0)
            return
        shard_of_user = (hash_ids(users.dictionary) % np.uint64(self._num_shards)).astype(np.uint16)
        shards = shard_of_user[users.indices.to_numpy()]
        order = np.argsort(shards, kind="stable")
        borders = np.searchsorted(shards[order], np.arange(self._num_shards + 1))
        sorted_events = events.take(pa.array(order))
        for shard, (start, end) in enumerate(pairwise(borders)):
            if start < end:
                self._write_piece(sorted_events.slice(start, end - start), shard)

    def _write_piece(self, events: pa.Table, shard: int) -> None:
        assert self._file is not None
        (batch,) = events.combine_chunks().to_batches()
        self._file.write_batch(batch)
        self.pieces.append(Piece(str(self._path), len(self.pieces), shard, len(events)))


def load_shard(
    pieces: Sequence[Piece], columns: Sequence[str], *, integer_users: bool, integer_items: bool
) -> ShardEvents:
    """The events of a shard, from its pieces in the order of the log; only `columns` are decompressed."""
    batches = []
    path, reader = "", None
    for piece in pieces:
        if piece.file != path:
            path = piece.file
            source = pa.memory_map(path)
            names = pa.ipc.open_file(source).schema.names
            wanted = [names.index(name) for name in columns if name in names]
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        assert reader is not None
        batches.append(reader.get_batch(piece.batch))
    table = pa.Table.from_batches(batches).combine_chunks()
    users, user_ids = _encode(table["user"], integer_users)
    items, item_ids = _encode(table["item"], integer_items)
    has_times, has_actions = "time" in table.column_names, "action" in table.column_names
    return ShardEvents(
        users=users,
        user_ids=user_ids,
        items=items,
        item_ids=item_ids,
        times=table["time"].to_numpy() if has_times else None,
        actions=table["action"].combine_chunks() if has_actions else None,
    )


def _encode(column: pa.ChunkedArray, integer: bool) -> tuple[npt.NDArray[np.int64], pa.Array]:
    encoded = pa.concat_arrays(column.chunks).dictionary_encode()
    ids = encoded.dictionary.cast(pa.int64()) if integer else encoded.dictionary
    return encoded.indices.to_numpy().astype(np.int64), ids


def _is_integer_text(ids: pa.Array) -> bool:
    """Whether every id is an integer, or text that an integer prints as ("7" is, "007" is not)."""
    try:
        return bool(ids.cast(pa.int64()).cast(pa.string()).equals(ids.cast(pa.string())))
    except pa.ArrowInvalid:
        return False


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each text occurs; nulls are left out."""
    counts = pc.value_counts(column.combine_chunks()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counts if entry["values"] is not None}
