"""Events between the passes of `genrec prepare`: *runs* of neighbouring events of the log, sorted into shards.

A run is three Arrow files, uncompressed, so that a task maps into memory what it needs of them and copies nothing:

    STEM.events.arrow   user, item (numbers, below), time (microseconds)?, action?, value?    a record batch a shard
    STEM.users.arrow    hash, user: the users of a shard by rising hash               a record batch a shard
    STEM.items.arrow    hash, item, count: the items of the run by rising hash        one record batch
    STEM.indices.npy    position of each of these items in the vocabulary             (vocabulary.py)

An event's user is a row of its shard's users, its item a row of the run's items: every id is looked at once, where the
log is read, and only numbers are sorted and counted after that. Reading the batches of a shard, run after run, gives
its events in the order of the log, which is what a stable sort by time needs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.stable_hash import hash_ids, order_by_hash, unify

Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Piece:
    """Events of one shard: a record batch of the run whose files start with `file`."""

    file: str
    batch: int
    shard: int
    num_events: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has been written. `integer_users` and `integer_items`: every id is the text of a 64-bit integer."""

    file: str
    pieces: tuple[Piece, ...]
    integer_users: bool
    integer_items: bool
    actions: dict[str, int]


@dataclass(frozen=True, slots=True)
class ShardEvents:
    """Events of one shard in the order of the log.

    `users` [num_events] are positions in `user_ids`, which holds each user of the shard once, by the hash of the id;
    `items` [num_events] are positions in the vocabulary. `times` are microseconds, `actions` codes from 1 and 0 for
    none; None when the log has none. `values` are NaN where unknown; None when they are not kept.
    """

    users: Codes
    user_ids: pa.Array
    items: Codes
    times: Integers | None
    actions: npt.NDArray[np.uint8] | None
    values: npt.NDArray[np.float32] | None = None


def write_run(file: str, events: pa.Table, num_shards: int) -> Run:
    """Writes checked events (user, item, and any of time, action, value) as the run `file`."""
    items, integer_items = _write_items(file, events["item"])
    users, user_ids = _encode(events["user"])
    hashes = hash_ids(user_ids)
    shard_of_user = (hashes % np.uint64(num_shards)).astype(np.uint16)
    by_hash = order_by_hash(hashes)
    by_shard = by_hash[np.argsort(shard_of_user[by_hash], kind="stable")]
    table = pa.table({"hash": hashes, "user": user_ids}).take(pa.array(by_shard))
    user_borders = np.concatenate([[0], np.cumsum(np.bincount(shard_of_user, minlength=num_shards))])
    row_of_user = np.empty(len(by_shard), dtype=np.int32)
    row_of_user[by_shard] = np.arange(len(by_shard)) - np.repeat(user_borders[:-1], np.diff(user_borders))

    shards = shard_of_user[users]
    event_borders = np.concatenate([[0], np.cumsum(np.bincount(shards, minlength=num_shards))])
    columns = {"user": pa.array(row_of_user[users]), "item": pa.array(items)}
    if "time" in events.column_names:
        columns["time"] = _flat(events["time"])
    if "value" in events.column_names:
        columns["value"] = _flat(events["value"]).fill_null(float("nan")).cast(pa.float32())
    actions: dict[str, int] = {}
    if "action" in events.column_names:
        codes = _name_codes(events["action"])
        counts = np.bincount(codes.indices.drop_null().to_numpy(), minlength=len(codes.dictionary))
        actions = dict(zip(codes.dictionary.to_pylist(), counts.tolist(), strict=True))
        columns["action"] = codes
    sorted_events = pa.table(columns)
    if num_shards > 1:
        sorted_events = sorted_events.take(pa.array(np.argsort(shards, kind="stable")))
    pieces: list[Piece] = []
    events_schema, users_schema = sorted_events.schema, table.schema
    with (
        pa.ipc.new_file(f"{file}.events.arrow", events_schema) as events_file,
        pa.ipc.new_file(f"{file}.users.arrow", users_schema) as users_file,
    ):
        for shard in np.flatnonzero(np.diff(event_borders)).tolist():
            first, end = event_borders[shard : shard + 2].tolist()
            pieces.append(Piece(file, len(pieces), shard, end - first))
            events_file.write_batch(_one_batch(sorted_events.slice(first, end - first)))
            first, end = user_borders[shard : shard + 2].tolist()
            users_file.write_batch(_one_batch(table.slice(first, end - first)))
    return Run(file, tuple(pieces), _is_integer_text(user_ids), integer_items, actions)


def _write_items(file: str, column: pa.ChunkedArray) -> tuple[Codes, bool]:
    """Writes the items of a run; the row of each event's item in that file, and whether all ids are integers."""
    codes, ids = _encode(column)
    hashes = hash_ids(ids)
    order = order_by_hash(hashes)
    counts = np.bincount(codes, minlength=len(ids))
    table = pa.table({"hash": hashes, "item": ids, "count": counts}).take(pa.array(order))
    with pa.ipc.new_file(f"{file}.items.arrow", table.schema) as writer:
        writer.write_batch(_one_batch(table))
    row_of_item = np.empty(len(order), dtype=np.int32)
    row_of_item[order] = np.arange(len(order))
    return row_of_item[codes], _is_integer_text(ids)


def load_items(file: str) -> pa.Table:
    """The items of a run (hash, item, count) by rising hash, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(f"{file}.items.arrow")).read_all()


def save_indices(file: str, positions: Integers) -> None:
    """Writes where each item of `load_items(file)` stands in the vocabulary."""
    np.save(f"{file}.indices.npy", positions.astype(np.int32))


def load_users(pieces: Sequence[Piece], *, integer_users: bool) -> tuple[pa.Array, list[Codes]]:
    """The users of a shard, each once, by the hash of the id; and for each piece where its users stand among them."""
    batches = [pa.ipc.open_file(pa.memory_map(f"{piece.file}.users.arrow")).get_batch(piece.batch) for piece in pieces]
    ids = pa.concat_arrays([batch["user"] for batch in batches])
    if integer_users:
        ids = ids.cast(pa.int64())
    first, rows = unify(np.concatenate([batch["hash"].to_numpy() for batch in batches]), ids)
    borders = np.cumsum([len(batch) for batch in batches])
    return ids.take(pa.array(first)), np.split(rows.astype(np.int32), borders[:-1])


def load_shard(
    pieces: Sequence[Piece], columns: Iterable[str], *, integer_users: bool, actions: Sequence[str] = ()
) -> ShardEvents:
    """The events of a shard, from its pieces in the order of the log; `columns` says which of time, action and value.

    `actions` are the names of the codes 1, 2, ...
    """
    user_ids, rows = load_users(pieces, integer_users=integer_users)
    names = pa.array(actions, pa.string())
    users, items, times, codes, values = [], [], [], [], []
    for piece, row_of_user in zip(pieces, rows, strict=True):
        batch = pa.ipc.open_file(pa.memory_map(f"{piece.file}.events.arrow")).get_batch(piece.batch)
        users.append(row_of_user[batch["user"].to_numpy()])
        items.append(np.load(f"{piece.file}.indices.npy", mmap_mode="r", allow_pickle=False)[batch["item"].to_numpy()])
        if "time" in columns and "time" in batch.schema.names:
            times.append(batch["time"].to_numpy())
        if "action" in columns and "action" in batch.schema.names:
            code_of_name = pc.index_in(batch["action"].dictionary, value_set=names).fill_null(-1).to_numpy() + 1
            numbers = batch["action"].indices.fill_null(len(code_of_name)).to_numpy()
            codes.append(np.append(code_of_name, 0).astype(np.uint8)[numbers])
        if "value" in columns and "value" in batch.schema.names:
            values.append(batch["value"].to_numpy())
    return ShardEvents(
        users=np.concatenate(users),
        user_ids=user_ids,
        items=np.concatenate(items),
        times=np.concatenate(times) if times else None,
        actions=np.concatenate(codes) if codes else None,
        values=np.concatenate(values) if values else None,
    )


def _encode(column: pa.ChunkedArray) -> tuple[Codes, pa.Array]:
    """Numbers of the distinct ids of a column without nulls [num_rows], and these ids."""
    flat = _flat(column)
    is_new = np.ones(len(flat), dtype=np.bool_)
    is_new[1:] = pc.not_equal(flat.slice(1), flat.slice(0, len(flat) - 1)).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(is_new)
    if 2 * len(starts) > len(flat):
        encoded = flat.dictionary_encode()
        return encoded.indices.to_numpy(), encoded.dictionary
    encoded = flat.take(pa.array(starts)).dictionary_encode()  # a log by user: a user's events stand together
    codes: Codes = np.repeat(encoded.indices.to_numpy(), np.diff(np.append(starts, len(flat))))
    return codes, encoded.dictionary


def _name_codes(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column of names as numbers of distinct names, one byte each where that is enough (it should be)."""
    codes = _flat(column).dictionary_encode()
    if len(codes.dictionary) > 256:
        return codes
    return pa.DictionaryArray.from_arrays(codes.indices.cast(pa.uint8()), codes.dictionary)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch


def _is_integer_text(ids: pa.Array) -> bool:
    """Whether every id is an integer, or text that an integer prints as ("7" is, "007" is not)."""
    if pa.types.is_integer(ids.type):
        return True
    try:
        return bool(ids.cast(pa.int64()).cast(pa.string()).equals(ids))
    except pa.ArrowInvalid:
        return False
