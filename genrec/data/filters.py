"""Which users and items stay: the k-core, and how often each item that stays occurs.

Removing rare items makes users short and the other way round, so the two filters are repeated until neither removes
anything; what is left does not depend on the order. Users are whole inside a shard, so a task filters users alone;
items are counted over all shards between two rounds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.scatter import Piece, load_shard

_MERGE_ROWS = 4_000_000  # item counts of shards that are held before they are added up


@dataclass(frozen=True, slots=True)
class CountTask:
    """One shard, and the items that are still in (an Arrow file; None is all of them)."""

    pieces: tuple[Piece, ...]
    integer_users: bool
    integer_items: bool
    min_user_events: int
    kept_items: Path | None = None


@dataclass(frozen=True, slots=True)
class CountResult:
    """Users and events that stay in one shard, and how often each of their items occurs (item, count)."""

    num_users: int
    num_events: int
    items: pa.Table


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of the log: its items with their counts, the users of each shard, and what the filters dropped."""

    items: pa.Table
    users_per_shard: tuple[int, ...]
    num_events: int
    dropped: dict[str, int]


def count_shard(task: CountTask) -> CountResult:
    """Filters one shard's users and counts the items of those that stay."""
    events = load_shard(
        task.pieces, ["user", "item"], integer_users=task.integer_users, integer_items=task.integer_items
    )
    stays = np.ones(len(events.users), dtype=np.bool_)
    if task.kept_items is not None:
        known: npt.NDArray[np.bool_] = pc.is_in(events.item_ids, value_set=load_ids(task.kept_items)).to_numpy(
            zero_copy_only=False
        )
        stays = known[events.items]
    per_user = np.bincount(events.users[stays], minlength=len(events.user_ids))
    long_enough = per_user >= task.min_user_events
    stays &= long_enough[events.users]
    per_item = np.bincount(events.items[stays], minlength=len(events.item_ids))
    present = np.flatnonzero(per_item)
    items = pa.table({"item": events.item_ids.take(pa.array(present)), "count": per_item[present].astype(np.int64)})
    return CountResult(int((long_enough & (per_user > 0)).sum()), int(stays.sum()), items)


def keep_core(
    tasks: Sequence[CountTask],
    min_item_events: int,
    folder: Path,
    run: Callable[[Sequence[CountTask]], Iterable[CountResult]],
) -> Kept:
    """Repeats the filters over all shards until nothing changes; `run` maps `count_shard` over the tasks, in order.

    `folder` receives the list of kept items between two rounds.
    """
    num_total = sum(piece.num_events for task in tasks for piece in task.pieces)
    dropped_by_item = 0
    while True:
        items, users_per_shard, num_events = _merge(run(tasks))
        frequent = items.filter(pc.field("count") >= min_item_events)
        if len(frequent) == len(items):
            break
        dropped_by_item += pc.sum(items["count"]).as_py() - (pc.sum(frequent["count"]).as_py() or 0)
        path = folder / "kept_items.arrow"
        save_ids(path, frequent["item"])
        tasks = [replace(task, kept_items=path) for task in tasks]
    by_user = num_total - num_events - dropped_by_item
    dropped = {"min_item_events": dropped_by_item, "min_user_events": by_user}
    return Kept(items, users_per_shard, num_events, {name: rows for name, rows in dropped.items() if rows})


def save_ids(path: Path, ids: pa.ChunkedArray) -> None:
    """Writes ids to an Arrow file that tasks map into memory together."""
    table = pa.table({"item": ids})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def load_ids(path: Path) -> pa.ChunkedArray:
    """The ids of `save_ids`, not copied."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()["item"]


def _merge(results: Iterable[CountResult]) -> tuple[pa.Table, tuple[int, ...], int]:
    pending: list[pa.Table] = []
    users: list[int] = []
    num_events = 0
    for result in results:
        users.append(result.num_users)
        num_events += result.num_events
        pending.append(result.items)
        if sum(len(table) for table in pending) > _MERGE_ROWS:
            pending = [_add_up(pending)]
    return _add_up(pending), tuple(users), num_events


def _add_up(tables: list[pa.Table]) -> pa.Table:
    totals = pa.concat_tables(tables).group_by("item", use_threads=False).aggregate([("count", "sum")])
    return pa.table({"item": totals["item"], "count": totals["count_sum"]})
