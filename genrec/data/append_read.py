"""What `genrec prepare --append` reads: the events of the new files, in memory and with the numbers of the set."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.data.append_merge import Events, IntArray, stable_order
from genrec.data.log_files import FileError
from genrec.data.log_parts import LogPart
from genrec.data.quarantine import BadPart, Quarantine, settle
from genrec.data.rejected import RejectedWriter
from genrec.data.scatter import read_events
from genrec.data.schema import ITEMS_FILE, USERS_FILE
from genrec.data.stable_hash import hash_ids
from genrec.data.timestamps import MICROSECONDS
from genrec.data.vocabulary import name_actions
from genrec.errors import DataError


@dataclass(frozen=True, slots=True)
class ReadTask:
    """One part of the new files, and what makes its rows bad or drops them."""

    part: LogPart
    time_unit: str
    min_value: float | None
    max_time: int | None
    keep_values: bool
    rejected_path: Path


@dataclass(frozen=True, slots=True)
class PartEvents:
    """The events of one part (user, item, time, action?, value?) as the log has them, and counts of what is none."""

    events: pa.Table | None
    num_rows: int
    num_small_values: int
    rejected: dict[str, int]
    examples: dict[str, str]


@dataclass(frozen=True, slots=True)
class NewEvents:
    """New events by user, and the users, items and actions that the set does not have yet, in their order.

    `item_counts` [num_items + 1] are the new events of each item index, old and new items.
    """

    events: Events
    users: pa.Array
    items: pa.Array
    actions: tuple[str, ...]
    item_counts: IntArray
    has_subseconds: bool


def read_parts(tasks: Sequence[ReadTask], quarantine: Quarantine) -> list[PartEvents]:
    """The parts of all files that can be used, in their order; the others go to the quarantine."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            return settle(tasks, pool.map(_read_or_reject, tasks), quarantine)
        finally:
            pool.shutdown(cancel_futures=True)


def number_events(folder: Path, parts: Sequence[PartEvents], actions: tuple[str, ...], *, text_ids: bool) -> NewEvents:
    """The events of `parts` with the numbers that their users, items and actions have, or get, in the set in `folder`.

    New users are numbered by the hash of their id, new items by falling count, then by rising id, new actions by
    falling count, then by name. Raises DataError when the ids are not of the set's type.
    """
    log = pa.concat_tables([part.events for part in parts if part.events is not None])
    known_users = pq.read_table(folder / USERS_FILE, columns=["user"])["user"]
    known_items = pq.read_table(folder / ITEMS_FILE, columns=["item"])["item"]
    user_codes, user_ids = _encode(log["user"], known_users.type, "user", text_ids)
    item_codes, item_ids = _encode(log["item"], known_items.type, "item", text_ids)

    user_numbers = _find(user_ids, known_users)
    strangers = np.flatnonzero(user_numbers < 0)
    strangers = strangers[np.argsort(hash_ids(user_ids.take(pa.array(strangers))), kind="stable")]
    user_numbers[strangers] = len(known_users) + np.arange(len(strangers))

    item_numbers = _find(item_ids, known_items) + 1
    novel = np.flatnonzero(item_numbers == 0)
    counts = np.bincount(item_codes, minlength=len(item_ids))[novel]
    table = pa.table({"item": item_ids.take(pa.array(novel)), "count": counts})
    order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("item", "ascending")]).to_numpy()
    novel = novel[order]
    item_numbers[novel] = len(known_items) + 1 + np.arange(len(novel))

    action_codes, new_actions = _action_codes(log, actions)
    micros: IntArray = log["time"].to_numpy()
    by_number = np.argsort(user_numbers)
    place_of_id = np.empty_like(by_number)
    place_of_id[by_number] = np.arange(len(by_number))
    places = place_of_id[user_codes]
    in_time = stable_order(places, micros)
    items = item_numbers[item_codes]
    events = Events(
        users=user_numbers[by_number],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(places))]),
        items=items[in_time].astype(np.int32),
        times=micros[in_time] // MICROSECONDS,
        actions=action_codes[in_time],
        values=_values(log)[in_time] if "value" in log.column_names else None,
    )
    return NewEvents(
        events=events,
        users=user_ids.take(pa.array(strangers)),
        items=item_ids.take(pa.array(novel)),
        actions=new_actions,
        item_counts=np.bincount(items, minlength=len(known_items) + len(novel) + 1),
        has_subseconds=bool((micros % MICROSECONDS).any()),
    )


def _encode(column: pa.ChunkedArray, wanted: pa.DataType, role: str, text_ids: bool) -> tuple[IntArray, pa.Array]:
    """Which of the distinct ids each event has, and these ids in the set's type."""
    encoded = column.dictionary_encode().unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    ids = encoded.chunk(0).dictionary
    if text_ids and pa.types.is_integer(wanted):
        try:
            numbers = ids.cast(wanted)
        except pa.ArrowInvalid:
            numbers = None
        if numbers is not None and numbers.cast(pa.string()).equals(ids):
            return codes, numbers
    elif ids.type == wanted:
        return codes, ids
    raise DataError(
        f"The prepared set has {wanted} {role} ids and the new files have others; run `genrec prepare CONFIG "
        "--overwrite` to prepare everything."
    )


def _find(ids: pa.Array, known: pa.ChunkedArray) -> IntArray:
    """Where each id stands in `known`, -1 for none; the hash table is one of `ids`, which are few."""
    found = pc.index_in(known, value_set=ids)
    is_found = found.is_valid().to_numpy()
    places = np.full(len(ids), -1, dtype=np.int64)
    places[found.drop_null().to_numpy()] = np.flatnonzero(is_found)
    return places


def _action_codes(log: pa.Table, known: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """The code of each event's action, and the names that are new."""
    if "action" not in log.column_names:
        return np.zeros(len(log), dtype=np.uint8), ()
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(log["action"].drop_null()).to_pylist()}
    ranked = name_actions([counts, dict.fromkeys(known, 0)])  # refuses too many
    new = tuple(name for name in ranked if name not in known)
    codes = pc.index_in(log["action"], value_set=pa.array([*known, *new], pa.string())).fill_null(-1).to_numpy() + 1
    return codes.astype(np.uint8), new


def _values(log: pa.Table) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = log["value"].fill_null(float("nan")).cast(pa.float32()).to_numpy()
    return values


def _read_or_reject(task: ReadTask) -> PartEvents | BadPart:
    tables = []
    num_read = num_small = 0
    try:
        with RejectedWriter(task.rejected_path, task.part.label) as rejected:
            for block, num_block_rows, num_block_small in read_events(
                task.part,
                rejected,
                time_unit=task.time_unit,
                min_value=task.min_value,
                max_time=task.max_time,
                keep_values=task.keep_values,
            ):
                num_read += num_block_rows
                num_small += num_block_small
                tables.append(block)
    except FileError as error:
        return BadPart(error)
    events = pa.concat_tables(tables) if tables else None
    num_rows = num_read + rejected.num_lines
    return PartEvents(events, num_rows, num_small, dict(rejected.counts), rejected.examples)
