"""Which users and items stay: the k-core, and how often each item that stays occurs.

Removing rare items makes users short and the other way round, so the two filters are repeated until neither removes
anything; what is left does not depend on the order. Users are whole inside a shard, so a task filters users alone;
items are counted over all shards between two rounds. Items are positions in the vocabulary, so counting is adding up
arrays of numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
    kept_items: Path | None = None


@dataclass(frozen=True, slots=True)
class CountResult:
    """Users and events that stay in one shard, and how often each of their items occurs."""

    num_users: int
    num_events: int
    items: Integers
    counts: Integers


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of the log: events of every item of the vocabulary, users of each shard, and what filters dropped."""

    counts: Integers
    users_per_shard: tuple[int, ...]
    dropped: dict[str, int]

    @property
    def num_events(self) -> int:
        """Events that stay."""
        return int(self.counts.sum())


def count_shard(task: CountTask) -> CountResult:
    """Filters one shard's users and counts the items of those that stay."""
    events = load_shard(task.pieces, [], integer_users=task.integer_users)
    stays = np.ones(len(events.users), dtype=np.bool_)
    if task.kept_items is not None:
        stays = np.load(task.kept_items, mmap_mode="r")[events.items]
    per_user = np.bincount(events.users[stays], minlength=len(events.user_ids))
    long_enough = per_user >= task.min_user_events
    stays &= long_enough[events.users]
    items, counts = count_numbers(events.items[stays], task.num_items)
    return CountResult(int((long_enough & (per_user > 0)).sum()), int(stays.sum()), items, counts)


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
    rare = counts < min_item_events
    if not rare.any() and all(task.min_user_events == 1 for task in tasks):
        users = (load_users(task.pieces, integer_users=task.integer_users)[0] for task in tasks)
        return Kept(counts, tuple(len(ids) for ids in users), {})
    num_total = int(counts.sum())
    dropped_by_item = num_rounds = 0
    if any(task.min_user_events > 1 for task in tasks):
        rare = np.zeros(len(counts), dtype=np.bool_)  # users go first
    while True:
        if rare.any():
            dropped_by_item += int(counts[rare].sum())
            path = folder / f"kept-items-{num_rounds:03d}.npy"
            np.save(path, (counts > 0) & ~rare)
            tasks = [replace(task, kept_items=path) for task in tasks]
        counts, users_per_shard = _add_up(run(tasks, num_rounds), len(counts))
        num_rounds += 1
        rare = (counts > 0) & (counts < min_item_events)
        if not rare.any():
            break
    by_user = num_total - int(counts.sum()) - dropped_by_item
    dropped = {"min_item_events": dropped_by_item, "min_user_events": by_user}
    return Kept(counts, users_per_shard, {name: rows for name, rows in dropped.items() if rows})


def _add_up(results: Iterable[CountResult], num_items: int) -> tuple[Integers, tuple[int, ...]]:
    totals = np.zeros(num_items, dtype=np.int64)
    users: list[int] = []
    for result in results:
        users.append(result.num_users)
        totals[result.items] += result.counts
    return totals, tuple(users)
