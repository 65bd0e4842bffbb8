"""Which users and items stay: the k-core, and how often each item that stays occurs.

Removing rare items makes users short and the other way round, so the two filters are repeated until neither removes
anything; what is left does not depend on the order. Users are whole inside a shard, so a task filters users alone;
items are counted over all shards between two rounds. Items are positions in the vocabulary, so counting is adding up
arrays of numbers.

With a global-time split only events before the validation period decide: what comes later must not change what is
trained on. A filter of 1 is no filter: users and items whose first event comes later stay, for evaluation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.runs import Piece, load_shard, load_users

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CountTask:
    """One shard, and which items are still in (a .npy file of bools by position; None is all of them)."""

    pieces: tuple[Piece, ...]
    integer_users: bool
    num_items: int
    min_user_events: int
    train_until: int | None = None
    """Only events before this microsecond decide; None is all of them."""
    kept_items: Path | None = None


@dataclass(frozen=True, slots=True)
class CountResult:
    """Users and events that stay in one shard, how often each of their items occurs, and how often where it decides."""

    num_users: int
    num_events: int
    items: Integers
    counts: Integers
    deciding_counts: Integers


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of the log: events of every item of the vocabulary, users of each shard, and what filters dropped.

    `deciding_counts` leave out what a global-time split holds out: they order the items.
    """

    counts: Integers
    deciding_counts: Integers
    users_per_shard: tuple[int, ...]
    dropped: dict[str, int]

    @property
    def num_events(self) -> int:
        """Events that stay."""
        return int(self.counts.sum())


def count_shard(task: CountTask) -> CountResult:
    """Filters one shard's users and counts the items of those that stay."""
    columns = [] if task.train_until is None else ["time"]
    events = load_shard(task.pieces, columns, integer_users=task.integer_users)
    stays = np.ones(len(events.users), dtype=np.bool_)
    if task.kept_items is not None:
        stays = np.load(task.kept_items, mmap_mode="r", allow_pickle=False)[events.items]
    in_time = before(events.times, task.train_until)
    user_stays = users_that_stay(events.users, stays, in_time, len(events.user_ids), task.min_user_events)
    stays &= user_stays[events.users]
    items, counts = count_numbers(events.items[stays], task.num_items)
    deciding = counts
    if in_time is not None:
        deciding = np.bincount(np.searchsorted(items, events.items[stays & in_time]), minlength=len(items))
    return CountResult(int(user_stays.sum()), int(stays.sum()), items, counts, deciding)


def before(times: Integers | None, until: int | None) -> npt.NDArray[np.bool_] | None:
    """Which events are earlier than a microsecond; None when there is no such limit."""
    return None if until is None or times is None else times < until


def users_that_stay(
    users: npt.NDArray[np.integer[Any]],
    stays: npt.NDArray[np.bool_],
    in_time: npt.NDArray[np.bool_] | None,
    num_users: int,
    min_user_events: int,
) -> npt.NDArray[np.bool_]:
    """Which users have an event that stays and, when more than one is asked for, enough of them in time."""
    present = np.bincount(users[stays], minlength=num_users)
    if min_user_events == 1 or in_time is None:
        return present >= min_user_events
    return np.bincount(users[stays & in_time], minlength=num_users) >= min_user_events


def count_numbers(numbers: npt.NDArray[np.int32], end: int) -> tuple[Integers, Integers]:
    """Which numbers of 0 .. end - 1 occur, and how often."""
    if end > 4 * len(numbers):  # a table of all of them would cost more than sorting these
        found, counts = np.unique(numbers, return_counts=True)
        return found.astype(np.int64), counts.astype(np.int64)
    per_number = np.bincount(numbers, minlength=end)
    present = np.flatnonzero(per_number)
    return present, per_number[present].astype(np.int64)


def keep_core(
    tasks: Sequence[CountTask],
    counts: Integers,
    min_item_events: int,
    folder: Path,
    run: Callable[[Sequence[CountTask], int], Iterable[CountResult]],
) -> Kept:
    """Repeats the filters over all shards until nothing changes.

    `counts` are the events of every item of the log, `run(tasks, n)` maps `count_shard` over the tasks of round n, in
    order, and `folder` receives the list of kept items between two rounds.
    """
    everything_decides = all(task.train_until is None for task in tasks)
    rare = counts < min_item_events
    if everything_decides and not rare.any() and all(task.min_user_events == 1 for task in tasks):
        users = (load_users(task.pieces, integer_users=task.integer_users)[0] for task in tasks)
        return Kept(counts, counts, tuple(len(ids) for ids in users), {})
    num_total = int(counts.sum())
    dropped_by_item = num_rounds = 0
    if not everything_decides or any(task.min_user_events > 1 for task in tasks):
        rare = np.zeros(len(counts), dtype=np.bool_)  # users go first
    while True:
        if rare.any():
            dropped_by_item += int(counts[rare].sum())
            path = folder / f"kept-items-{num_rounds:03d}.npy"
            np.save(path, (counts > 0) & ~rare)
            tasks = [replace(task, kept_items=path) for task in tasks]
        counts, deciding, users_per_shard = _add_up(run(tasks, num_rounds), len(counts))
        num_rounds += 1
        rare = (counts > 0) & (deciding < min_item_events) & (min_item_events > 1)
        if not rare.any():
            break
    by_user = num_total - int(counts.sum()) - dropped_by_item
    dropped = {"min_item_events": dropped_by_item, "min_user_events": by_user}
    return Kept(counts, deciding, users_per_shard, {name: rows for name, rows in dropped.items() if rows})


def _add_up(results: Iterable[CountResult], num_items: int) -> tuple[Integers, Integers, tuple[int, ...]]:
    totals = np.zeros((2, num_items), dtype=np.int64)
    users: list[int] = []
    for result in results:
        users.append(result.num_users)
        totals[0, result.items] += result.counts
        totals[1, result.items] += result.deciding_counts
    return totals[0], totals[1], tuple(users)
