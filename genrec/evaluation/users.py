"""Reads the users that a role evaluates from a prepared set, as batches. pyarrow and numpy only: no Ray.

1. `read_histories` reads one row group as columns: events one after another, `offsets` between users.
2. `_role_users` keeps the users that the role evaluates, in this worker's share, cut after the target.
3. `evaluation_batches` gathers a few thousand users, orders them by length and cuts them into batches.

A worker's share is a range of the set's rows, so it reads a row group only when its range touches it, and every user
is in one share. Nothing that comes after a user's target is read into a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.manifest import Manifest
from genrec.data.schema import VALUES, Role
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends
from genrec.data.target_actions import target_codes
from genrec.data.user_hashes import user_hashes

IntArray = npt.NDArray[np.int64]

BUFFERED_BATCHES = 16  # batches whose users are ordered by length together
MAX_SCORES_BYTES = 256 * 2**20  # whole rows of scores held at a time while recommending
TOKENS_PER_TRAINING_MICRO_BATCH = 4  # no activations are kept, so a batch may hold more than training's


@dataclass(frozen=True, slots=True)
class Histories:
    """Events of some users, one user after another.

    users    [num_users]       user indices, -1 for a user that the set does not know
    items    [num_events]      item indices
    times    [num_events]      seconds
    actions  [num_events]      0 when the log has none
    offsets  [num_users + 1]   borders of the users
    values   [num_events]      seconds played, NaN where unknown; None where nobody asks
    """

    users: IntArray
    items: IntArray
    times: IntArray
    actions: IntArray
    offsets: IntArray
    values: npt.NDArray[np.float32] | None = None

    @property
    def lengths(self) -> IntArray:
        """Events of each user, [num_users]."""
        return np.diff(self.offsets)

    def stretch(self, rows: IntArray, starts: IntArray, ends: IntArray) -> "Histories":
        """Events `[starts, ends)` of the users in `rows`; starts and ends count from each user's first event."""
        index, offsets = _stretch_index(self.offsets[rows] + starts, ends - starts)
        values = None if self.values is None else self.values[index]
        return Histories(self.users[rows], self.items[index], self.times[index], self.actions[index], offsets, values)


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Some users, each with a window of history and the one item to find.

    batch       windows: the last `sequence.max_length` events before the target; the query time is the target's time
    users       [num_users] user indices; may be fewer than the batch's sequences (see `placeholder_batch`)
    targets     [num_users] item indices
    history_lengths  [num_users] events before the target, seen by the model or not
    target_actions   [num_users] the targets' actions, 0 where unknown; None where nobody asks
    target_values    [num_users] the targets' values, NaN where unknown; None where nobody asks
    seen_rows   [num_seen]  row of a user, and
    seen_items  [num_seen]  an item of that user's whole history; both empty when seen items are not filtered
    """

    batch: Batch
    users: Tensor
    targets: Tensor
    history_lengths: Tensor
    seen_rows: Tensor
    seen_items: Tensor
    target_actions: Tensor | None = None
    target_values: Tensor | None = None


def histories_from_table(table: pa.Table) -> Histories:
    """The rows of a `sequences` table as jagged columns."""
    lists = {name: _flat_list(table[name]) for name in ("items", "times", "actions")}
    users: IntArray = table["user"].to_numpy().astype(np.int64)
    values = None
    if VALUES in table.column_names:
        values = table[VALUES].combine_chunks().flatten().to_numpy()
    return Histories(users, lists["items"][0], lists["times"][0], lists["actions"][0], lists["items"][1], values)


def read_histories(folder: str | Path, path: str, row_group: int, *, values: bool = False) -> Histories:
    """One row group of a prepared set's sequence file; raises DataError when the file is damaged.

    With `values`, those of the events too, where the set keeps them.
    """
    columns = ["user", "items", "times", "actions", *([VALUES] if values else [])]
    return histories_from_table(read_row_group(folder, path, row_group, columns))


def window_batch(histories: Histories, max_length: int, query_times: IntArray) -> Batch:
    """The last `max_length` events of each history; `query_times` [num_users] are when the next event is asked for."""
    lengths = histories.lengths
    rows = np.arange(len(lengths), dtype=np.int64)
    window = histories.stretch(rows, np.maximum(lengths - max_length, 0), lengths)
    target_times = np.empty_like(window.times)
    target_times[:-1] = window.times[1:]
    target_times[window.offsets[1:] - 1] = query_times
    batch = batch_from_arrays(
        window.items, window.offsets, times=window.times, target_times=target_times, actions=window.actions
    )
    return replace(batch, users=torch.from_numpy(window.users))


def seen_pairs(histories: Histories) -> tuple[Tensor, Tensor]:
    """(row, item) of every event, [num_events] each: what a filter takes out of the ranking."""
    rows = np.repeat(np.arange(len(histories.users), dtype=np.int64), histories.lengths)
    return torch.from_numpy(rows), torch.from_numpy(histories.items)


def evaluation_batches(
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    *,
    rank: int = 0,
    world_size: int = 1,
    max_users: int | None = None,
) -> Iterator[EvaluationBatch]:
    """Batches of the users that `role` evaluates and that are in worker `rank`'s share.

    Over all workers every user comes once. With `max_users`, at most that many users come, over all workers: the same
    ones whatever the number of workers and the config's seed.
    """
    pending: list[tuple[Histories, IntArray]] = []
    for part in _role_users(config, manifest, role, (rank, world_size), max_users):
        pending.append(part)
        if sum(len(users.users) for users, _ in pending) >= BUFFERED_BATCHES * config.evaluation.users_per_batch:
            yield from _cut(pending, config)
            pending = []
    if pending:
        yield from _cut(pending, config)


def placeholder_batch() -> EvaluationBatch:
    """One sequence of one event and no user: what a worker without users runs while the others still have some."""
    none = torch.zeros(0, dtype=torch.int64)
    batch = batch_from_arrays(np.ones(1, dtype=np.int64), np.array([0, 1]))
    return EvaluationBatch(
        batch,
        users=none,
        targets=none,
        history_lengths=none,
        seen_rows=none,
        seen_items=none,
        target_actions=none,
        target_values=torch.zeros(0),
    )


def in_step(
    batches: Iterator[EvaluationBatch], all_reduce: Callable[[Tensor], Tensor] | None, device: torch.device
) -> Iterator[EvaluationBatch]:
    """This worker's batches, then placeholders until no worker has any left.

    Under ZeRO-3 a forward pass gathers weights from all workers, so all of them must make the same number of passes,
    however unevenly the users fall. One number summed before each batch costs far less than the pass.
    """
    for batch in batches:
        if all_reduce is not None:
            all_reduce(torch.ones(1, dtype=torch.int64, device=device))
        yield batch
    while all_reduce is not None and int(all_reduce(torch.zeros(1, dtype=torch.int64, device=device))) > 0:
        yield placeholder_batch()


def users_per_batch_of(config: ExperimentConfig, num_items: int) -> int:
    """How many users are recommended to at a time: `evaluation.users_per_batch`, or as many as have scores
    [num_users, num_items + 1] within `MAX_SCORES_BYTES`."""
    return max(1, min(config.evaluation.users_per_batch, MAX_SCORES_BYTES // (4 * (num_items + 1))))


def batch_borders(lengths: IntArray, max_users: int, max_tokens: int) -> IntArray:
    """Where to cut users of these lengths into batches within both limits, [num_batches + 1]; one user always fits."""
    ends = np.cumsum(lengths)
    borders = [0]
    while borders[-1] < len(lengths):
        first = borders[-1]
        before = ends[first - 1] if first else 0
        within_tokens = int(np.searchsorted(ends, before + max_tokens, side="right"))
        borders.append(max(first + 1, min(within_tokens, first + max_users, len(lengths))))
    return np.array(borders, dtype=np.int64)


def max_tokens_of(config: ExperimentConfig) -> int:
    """Events in one evaluation batch, at most."""
    micro_batch = config.batch.tokens_per_step // config.batch.micro_batches_per_step
    return TOKENS_PER_TRAINING_MICRO_BATCH * micro_batch


def _role_users(
    config: ExperimentConfig, manifest: Manifest, role: Role, share: tuple[int, int], max_users: int | None
) -> Iterator[tuple[Histories, IntArray]]:
    """Evaluated users of this share, row group by row group: each is its history, then the target as last event.

    With them, how many events come before the target; without the filter not all of those are read.
    """
    rank, world_size = share
    asks_values = config.heads.dwell is not None
    codes = target_codes(config.sequence.target_actions, manifest)
    num_rows = sum(group.rows for file in manifest.files for group in file.row_groups)
    begin, end = num_rows * rank // world_size, num_rows * (rank + 1) // world_size
    row = 0
    for file in manifest.files:
        for index, group in enumerate(file.row_groups):
            first, row = row, row + group.rows
            # Each row group gives its part of the sample, so most row groups need not be read for a small one.
            quota = None if max_users is None else max_users * row // num_rows - max_users * first // num_rows
            if row <= begin or first >= end or quota == 0:
                continue
            histories = read_histories(config.data.prepared, file.path, index, values=asks_values)
            ends, evaluated = history_ends(manifest.split, role, histories.times, histories.offsets)
            if codes is not None:
                rows = np.flatnonzero(evaluated)
                evaluated[rows] = np.isin(histories.actions[histories.offsets[rows] + ends[rows]], codes)
            chosen = _sample(np.flatnonzero(evaluated), histories.users, quota)
            chosen = chosen[(chosen + first >= begin) & (chosen + first < end)]
            ends = ends[chosen]
            # Without the filter nobody asks what came before the window.
            start = np.zeros_like(ends)
            if not config.evaluation.filter_seen:
                start = np.maximum(ends - config.sequence.max_length, 0)
            yield histories.stretch(chosen, start, ends + 1), ends


def _sample(rows: IntArray, users: IntArray, quota: int | None) -> IntArray:
    """The `quota` rows whose user index has the smallest hash: a sample that depends on nothing but the users."""
    if quota is None or quota >= len(rows):
        return rows
    return np.sort(rows[np.argsort(user_hashes(users[rows]), kind="stable")[:quota]])


def _cut(parts: list[tuple[Histories, IntArray]], config: ExperimentConfig) -> Iterator[EvaluationBatch]:
    """Batches of neighbours in length, so that attention has little to pad."""
    users = _join([part for part, _ in parts])
    history_lengths = np.concatenate([before for _, before in parts])
    max_length = config.sequence.max_length
    windows = np.minimum(users.lengths - 1, max_length)
    order = np.argsort(windows, kind="stable")
    borders = batch_borders(windows[order], config.evaluation.users_per_batch, max_tokens_of(config))
    for first, last in pairwise(borders):
        rows = order[first:last]
        lengths = users.lengths[rows]
        history = users.stretch(rows, np.zeros_like(lengths), lengths - 1)
        target_events = users.offsets[rows + 1] - 1
        none = torch.zeros(0, dtype=torch.int64)
        seen_rows, seen_items = seen_pairs(history) if config.evaluation.filter_seen else (none, none)
        yield EvaluationBatch(
            batch=window_batch(history, max_length, users.times[target_events]),
            users=torch.from_numpy(history.users),
            targets=torch.from_numpy(users.items[target_events]),
            history_lengths=torch.from_numpy(history_lengths[rows]),
            seen_rows=seen_rows,
            seen_items=seen_items,
            target_actions=torch.from_numpy(users.actions[target_events]),
            target_values=None if users.values is None else torch.from_numpy(users.values[target_events]),
        )


def _join(parts: list[Histories]) -> Histories:
    lengths = np.concatenate([part.lengths for part in parts])
    values = [part.values for part in parts if part.values is not None]
    return Histories(
        users=np.concatenate([part.users for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        offsets=_offsets(lengths),
        values=np.concatenate(values) if values else None,
    )


def _stretch_index(starts: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Index of `lengths[i]` neighbours from `starts[i]` on, for every i one after another, and their borders."""
    offsets = _offsets(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _flat_list(column: pa.ChunkedArray) -> tuple[IntArray, IntArray]:
    """Values and borders of a list column, as int64."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # what pyarrow returns for a column without chunks
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], type=column.type)
    offsets: IntArray = lists.offsets.to_numpy().astype(np.int64)
    values: IntArray = lists.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64)
    return values, offsets - offsets[0]
