"""Turns a chunk of the plan into its micro-batches. Pure: a Ray task and a single process get the same bytes.

One row of a table is one ready micro-batch: who it is (step, part, id), how many targets its whole step has, and its
windows, one after another. A window of n tokens is stored as its n + 1 events; that each event is the target of the one
before it is put down nowhere, stream.py knows it. Nothing here needs torch, so a map task starts fast.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from genrec.data.packing import IntArray, deal_anew, pack
from genrec.data.plan import Chunk, PlanSpec, tokens_of
from genrec.data.schema import VALUES, sequences_schema
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends
from genrec.data.windows import choose_events, cut_windows
from genrec.errors import DataError

MICRO_BATCH_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("epoch_first_step", pa.int64(), nullable=False),
        pa.field("epoch_num_steps", pa.int64(), nullable=False),
        pa.field("step_targets", pa.int64(), nullable=False),
        pa.field("step_weight", pa.float64(), nullable=False),
        pa.field("step_actions", pa.int64(), nullable=False),
        pa.field("step_values", pa.int64(), nullable=False),
        # A value for each event.
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("times", pa.list_(pa.int64()), nullable=False),
        pa.field("actions", pa.list_(pa.uint8()), nullable=False),
        pa.field("values", pa.list_(pa.float32())),  # null where no head asks for it
        # A value for each window: its tokens, its user, and the place of its first event in the user's history.
        pa.field("lengths", pa.list_(pa.int32()), nullable=False),
        pa.field("users", pa.list_(pa.int64()), nullable=False),
        pa.field("starts", pa.list_(pa.int64()), nullable=False),
        # The pool of the step, the same in all its micro-batches; null where no loss asks for it.
        pa.field("negatives", pa.list_(pa.int32())),
    ]
)

POOL_DRAWS = 1
"""Tells the draws of pools from a chunk's other draws."""


class StepSums(NamedTuple):
    """Sums over whole steps, [num_steps] each; 1 where nothing is summed, so that a loss can be divided by it."""

    targets: IntArray
    """Events that are predicted."""
    weights: npt.NDArray[np.float64]
    """The weights of these, added up."""
    actions: IntArray
    """Events with a known action that follow another event of their window."""
    values: IntArray
    """The same with a known value."""


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk in memory: its events as they are read, and which of them make which micro-batch."""

    chunk: Chunk
    parts: int
    first_id: int
    """`MicroBatchId.position` of the first micro-batch."""
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    actions: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32] | None
    events: IntArray
    """[num_tokens + num_windows] index into items, times and actions, window after window."""
    event_borders: IntArray
    """[num_windows + 1] borders of the windows in `events`."""
    users: IntArray
    starts: IntArray
    windows: IntArray
    """[num_windows] index into event_borders, users and starts, micro-batch after micro-batch."""
    borders: IntArray
    """[num_micro_batches + 1] borders of the micro-batches in `windows`."""
    sums: StepSums
    pools: tuple[npt.NDArray[np.int32], IntArray] | None
    """The steps' pools, one after another, and their borders [num_steps + 1]; None where no loss asks for them."""

    def rows(self, positions: IntArray) -> pa.Table:
        """The micro-batches at `positions` of the chunk, a row each."""
        chunk, windows = self.chunk, self.windows[_spans(self.borders, positions)]
        events = self.events[_spans(self.event_borders, windows)]
        window_borders = _borders(np.diff(self.borders)[positions])
        lengths = np.diff(self.event_borders)[windows]
        event_borders = _borders(lengths)[window_borders]
        count, steps = len(positions), positions // self.parts
        columns: dict[str, Any] = {
            "step": chunk.first_step + steps,
            "part": positions % self.parts,
            "epoch": np.full(count, chunk.epoch),
            "chunk": np.full(count, chunk.index),
            "position": self.first_id + positions,
            "epoch_first_step": np.full(count, chunk.epoch_first_step),
            "epoch_num_steps": np.full(count, chunk.epoch_num_steps),
            "step_targets": self.sums.targets[steps],
            "step_weight": self.sums.weights[steps],
            "step_actions": self.sums.actions[steps],
            "step_values": self.sums.values[steps],
            "items": _lists(self.items[events], event_borders),
            "times": _lists(self.times[events], event_borders),
            "actions": _lists(self.actions[events], event_borders),
            "values": pa.nulls(count, pa.list_(pa.float32()))
            if self.values is None
            else _lists(self.values[events], event_borders),
            "lengths": _lists((lengths - 1).astype(np.int32), window_borders),
            "users": _lists(self.users[windows], window_borders),
            "starts": _lists(self.starts[windows], window_borders),
            "negatives": self._pools_of(steps),
        }
        arrays = [
            pa.array(columns[f.name], type=f.type) if not isinstance(columns[f.name], pa.Array) else columns[f.name]
            for f in MICRO_BATCH_SCHEMA
        ]
        return pa.Table.from_arrays(arrays, schema=MICRO_BATCH_SCHEMA)

    def _pools_of(self, steps: IntArray) -> pa.Array:
        if self.pools is None:
            return pa.nulls(len(steps), pa.list_(pa.int32()))
        items, borders = self.pools
        return _lists(items[_spans(borders, steps)], _borders(np.diff(borders)[steps]))


class RowGroupReader:
    """Reads row groups for chunks, and keeps the last ones: chunks of a small set hold the same ones every epoch."""

    KEPT_BYTES = 64 * 2**20

    def __init__(self, folder: str, *, values: bool = False) -> None:
        """`values` reads the events' values too, of a set that keeps them."""
        self._folder = folder
        self.columns = sequences_schema(values=values).names
        self._kept: dict[tuple[str, int], pa.Table] = {}
        self._kept_bytes = 0

    def read(self, path: str, group: int) -> pa.Table:
        """A row group's users, with `columns`."""
        kept = self._kept.pop((path, group), None)
        table = read_row_group(self._folder, path, group, self.columns) if kept is None else kept
        self._kept[path, group] = table  # the newest stands last
        self._kept_bytes += table.nbytes if kept is None else 0
        while self._kept_bytes > self.KEPT_BYTES:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._kept_bytes -= oldest.nbytes
        return table


def worker_tables(
    spec: PlanSpec, chunks: Iterable[Chunk], *, ranks: Sequence[int], workers: int, start_step: int, end_step: int
) -> Iterator[pa.Table]:
    """The chunks' micro-batches of steps `[start_step, end_step)`, a table for `steps_per_block` steps of a worker.

    Tables come block after block of steps, within one for each worker of `ranks` in turn. Worker `w` of `workers` has
    parts `p` with `p % workers == w`; its rows are in order of step and part.
    """
    parts, block = spec.parts, spec.rule.steps_per_block
    reader = RowGroupReader(spec.folder, values=spec.targets.reads_values)
    for chunk in chunks:
        packed = pack_chunk(spec, chunk, reader)
        first, end = max(start_step - chunk.first_step, 0), min(end_step - chunk.first_step, chunk.num_steps)
        for step in range(first, end, block):
            steps = np.arange(step, min(step + block, end))
            for rank in ranks:
                yield packed.rows((steps[:, None] * parts + np.arange(rank, parts, workers)).ravel())


def pack_chunk(spec: PlanSpec, chunk: Chunk, reader: RowGroupReader) -> PackedChunk:
    """Reads a chunk and packs its windows; raises DataError when the set is not the one that was planned for."""
    lists, offsets, users, uniform = _read_chunk(spec, chunk, reader)
    ends, _ = history_ends(spec.split, spec.trained_as, lists["times"], offsets)
    generator = spec.generator(chunk.epoch, chunk.index)
    windows = cut_windows(spec.window, tokens_of(ends), uniform, generator)
    if int(windows.lengths.sum()) != chunk.num_tokens:
        raise DataError(
            f"Chunk {chunk.index} of epoch {chunk.epoch} has {int(windows.lengths.sum())} tokens and should have "
            f"{chunk.num_tokens}: {spec.folder} has changed since the run was started; start the same command again."
        )
    order, borders = pack(windows.lengths, spec.rule, chunk.num_steps, generator)
    windows = windows.take(order)
    events, event_borders = choose_events(windows, generator)
    counts = np.diff(event_borders)
    firsts = events[event_borders[:-1]]
    events += np.repeat(offsets[:-1][windows.rows], counts)
    step_borders = borders[:: spec.rule.micro_batches_per_step]
    sums = _sum_steps(spec, lists, (events, event_borders, step_borders))
    # Now that it is drawn what each window holds: which micro-batch it is in decides nothing about it.
    chosen = np.arange(len(counts))
    if spec.dealt_anew is not None:
        chosen, borders = deal_anew(counts - 1, borders, spec.rule, spec.dealt_anew)
    return PackedChunk(
        chunk=chunk,
        parts=spec.parts,
        first_id=_first_id(spec, chunk.num_steps),
        items=lists["items"],
        times=lists["times"],
        actions=lists["actions"],
        values=lists.get(VALUES),
        events=events,
        event_borders=event_borders,
        users=users[windows.rows],
        starts=firsts,
        windows=chosen,
        borders=borders,
        sums=sums,
        pools=_draw_pools(spec, chunk, lists, (events, event_borders, step_borders)),
    )


def _first_id(spec: PlanSpec, num_steps: int) -> int:
    """Where the numbers of a chunk's micro-batches begin: no two ways of dealing its steps have a number in common.

    First come the micro-batches that were packed, then those of steps dealt into 1, into 2, into 3 ...
    """
    if spec.dealt_anew is None:
        return 0
    return num_steps * (spec.rule.micro_batches_per_step + spec.dealt_anew * (spec.dealt_anew - 1) // 2)


def _sum_steps(
    spec: PlanSpec, lists: dict[str, npt.NDArray[Any]], packed: tuple[IntArray, IntArray, IntArray]
) -> StepSums:
    """Sums over the steps' events, `packed` as for `_draw_pools`; a window's first event does not count, as nothing
    predicts it."""
    events, event_borders, step_borders = packed
    actions = lists["actions"][events]

    def count(chosen: npt.NDArray[np.bool_]) -> IntArray:
        chosen[event_borders[:-1]] = False
        counts: IntArray = np.maximum(np.diff(_borders(chosen.astype(np.int64))[borders]), 1)
        return counts

    borders = event_borders[step_borders]
    targets = _are_targets(spec, actions, event_borders)
    num_targets = count(targets)
    weights = num_targets.astype(np.float64)
    values = lists[VALUES][events] if VALUES in lists else None
    of_events = spec.targets.weights_of(actions, values)
    if of_events is not None:
        weighted = of_events.astype(np.float64) * targets
        weights = np.diff(np.concatenate([[0.0], np.cumsum(weighted)])[borders])
        weights[weights <= 0] = 1.0
    has_value = np.zeros(len(events), dtype=np.bool_) if values is None else np.isfinite(values)
    return StepSums(num_targets, weights, count(actions > 0), count(has_value))


def _are_targets(spec: PlanSpec, actions: npt.NDArray[np.uint8], event_borders: IntArray) -> npt.NDArray[np.bool_]:
    """Which events are predicted: not the first of a window, and of a wanted action."""
    wanted = spec.targets.chosen(actions)
    wanted[event_borders[:-1]] = False
    return wanted


def _draw_pools(
    spec: PlanSpec, chunk: Chunk, lists: dict[str, npt.NDArray[Any]], packed: tuple[IntArray, IntArray, IntArray]
) -> tuple[npt.NDArray[np.int32], IntArray] | None:
    """The pools of the chunk's steps, one after another, and their borders; None where no loss asks for them.

    A pool is `spec.pool_size` targets of the step, drawn without putting one back, or all when there are not so many.
    `packed` are the chunk's events in the order of its steps, the borders of their windows, and those of the steps in
    windows. How a step's windows are dealt into micro-batches does not matter, nor does any other draw.
    """
    events, event_borders, step_borders = packed
    if not spec.pool_size:
        return None
    wanted = _are_targets(spec, lists["actions"][events], event_borders)
    targets: npt.NDArray[np.int32] = lists["items"][events[wanted]]
    borders = _borders(wanted.astype(np.int64))[event_borders[step_borders]]
    generator = spec.generator(chunk.epoch, chunk.index, POOL_DRAWS)
    pools = []
    for first, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        of_step = targets[first:end]
        if len(of_step) > spec.pool_size:
            of_step = of_step[generator.choice(len(of_step), spec.pool_size, replace=False, shuffle=False)]
        pools.append(of_step)
    return np.concatenate([np.zeros(0, dtype=np.int32), *pools]), _borders(np.array([len(pool) for pool in pools]))


def _read_chunk(
    spec: PlanSpec, chunk: Chunk, reader: RowGroupReader
) -> tuple[dict[str, npt.NDArray[Any]], IntArray, IntArray, npt.NDArray[np.float64] | None]:
    """What the events of the chunk's users are, one after another; the users' borders, indices and draws."""
    tables = [reader.read(path, group) for path, group, _ in chunk.row_groups]
    draws = [
        spec.uniform(table["user"].to_numpy(), visit.epoch)
        for table, visit in zip(tables, chunk.row_groups, strict=True)
    ]
    drawn = [draw for draw in draws if draw is not None]
    table = pa.concat_tables(tables).combine_chunks()
    offsets = _borders(table["length"].to_numpy().astype(np.int64))
    lists = {name: table[name].combine_chunks().flatten().to_numpy() for name in reader.columns[2:]}
    return lists, offsets, table["user"].to_numpy(), np.concatenate(drawn) if drawn else None


def _borders(counts: IntArray) -> IntArray:
    """Borders of runs of these lengths, from 0; one more than there are runs."""
    borders = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=borders[1:])
    return borders


def _spans(borders: IntArray, chosen: IntArray) -> IntArray:
    """The indices `borders[i] .. borders[i + 1] - 1` of every chosen i, one run after another."""
    firsts = borders[chosen]
    counts = borders[chosen + 1] - firsts
    ends = np.cumsum(counts)
    indices: IntArray = np.arange(ends[-1] if len(ends) else 0) + np.repeat(firsts - (ends - counts), counts)
    return indices


def _lists(values: npt.NDArray[Any], borders: IntArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(borders, type=pa.int32()), pa.array(values))
