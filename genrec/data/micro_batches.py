"""Turns a chunk of the plan into its micro-batches. Pure: a Ray task and a single process get the same bytes.

One row of the table is one ready micro-batch: who it is (step, part, id), how many targets its whole step has, and the
arrays of a `Batch`. Nothing here needs torch, so a map task starts fast.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from genrec.data.packing import IntArray, pack
from genrec.data.plan import Chunk, PlanSpec, windows_of
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends

MICRO_BATCH_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("epoch_first_step", pa.int64(), nullable=False),
        pa.field("epoch_num_steps", pa.int64(), nullable=False),
        pa.field("step_targets", pa.int64(), nullable=False),
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("targets", pa.list_(pa.int32()), nullable=False),
        pa.field("times", pa.list_(pa.int64()), nullable=False),
        pa.field("target_times", pa.list_(pa.int64()), nullable=False),
        pa.field("actions", pa.list_(pa.uint8()), nullable=False),
        pa.field("offsets", pa.list_(pa.int64()), nullable=False),
    ]
)


def chunk_table(spec: PlanSpec, chunk: Chunk) -> pa.Table:
    """The chunk's micro-batches, one a row, in plan order (step after step, part after part)."""
    lists, offsets = _read_chunk(spec, chunk)
    ends, _ = history_ends(spec.split, "train", lists["times"], offsets)
    tokens = windows_of(ends, spec.max_length)
    users = np.flatnonzero(tokens > 0)
    generator = spec.generator(chunk.epoch, chunk.index)
    starts = offsets[:-1][users] + _window_starts(spec.window, ends[users] - 1 - tokens[users], generator)
    order, borders = pack(tokens[users], spec.rule, generator)
    starts, tokens = starts[order], tokens[users][order]
    token_borders = np.concatenate([[0], np.cumsum(tokens)])
    inputs = np.arange(token_borders[-1]) + np.repeat(starts - token_borders[:-1], tokens)
    row_borders = token_borders[borders]
    parts = spec.rule.micro_batches_per_step
    num_rows = len(borders) - 1
    positions = np.arange(num_rows)
    step_targets = np.diff(row_borders).reshape(-1, parts).sum(axis=1)
    columns: dict[str, Any] = {
        "step": chunk.first_step + positions // parts,
        "part": positions % parts,
        "epoch": np.full(num_rows, chunk.epoch),
        "chunk": np.full(num_rows, chunk.index),
        "position": positions,
        "epoch_first_step": np.full(num_rows, chunk.epoch_first_step),
        "epoch_num_steps": np.full(num_rows, chunk.epoch_num_steps),
        "step_targets": np.repeat(step_targets, parts),
        "items": _ragged(lists["items"][inputs], row_borders),
        "targets": _ragged(lists["items"][inputs + 1], row_borders),
        "times": _ragged(lists["times"][inputs], row_borders),
        "target_times": _ragged(lists["times"][inputs + 1], row_borders),
        "actions": _ragged(lists["actions"][inputs], row_borders),
        "offsets": _sequence_offsets(token_borders, borders),
    }
    arrays = [
        pa.array(columns[f.name], type=f.type) if not isinstance(columns[f.name], pa.Array) else columns[f.name]
        for f in MICRO_BATCH_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=MICRO_BATCH_SCHEMA)


def rows_for_workers(table: pa.Table, *, workers: int, steps_per_block: int, parts: int) -> pa.Table:
    """The same rows, so ordered that each run of `steps_per_block * parts / workers` rows belongs to one worker.

    Within `steps_per_block` steps, worker 0's rows come first, then worker 1's, ...; each worker's rows are in plan
    order. Dealing such runs to the workers in turn gives worker `w` exactly the parts `p` with `p % workers == w`.
    """
    index = np.arange(table.num_rows)
    step, part = np.divmod(index, parts)
    order = np.lexsort([part // workers, step, part % workers, step // steps_per_block])
    return table.take(pa.array(order))


def _read_chunk(spec: PlanSpec, chunk: Chunk) -> tuple[dict[str, npt.NDArray[Any]], IntArray]:
    """Items, times and actions of the chunk's users, one after another, and the users' borders."""
    columns = ["length", "items", "times", "actions"]
    tables = [read_row_group(spec.folder, path, group, columns) for path, group in chunk.row_groups]
    table = pa.concat_tables(tables).combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(table["length"].to_numpy().astype(np.int64))])
    lists = {name: table[name].combine_chunks().flatten().to_numpy() for name in ("items", "times", "actions")}
    return lists, offsets


def _window_starts(window: str, slack: IntArray, generator: np.random.Generator) -> IntArray:
    """First event of each window; `slack` is how many events a history has beyond its window."""
    return slack if window == "last" else generator.integers(0, slack + 1)


def _ragged(values: npt.NDArray[Any], borders: IntArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(borders, type=pa.int32()), pa.array(values))


def _sequence_offsets(token_borders: IntArray, borders: IntArray) -> pa.ListArray:
    """Each row's own offsets, from 0; a row with n sequences has n + 1 of them."""
    rows = np.arange(len(borders) - 1)
    counts = np.diff(borders) + 1
    index = np.arange(counts.sum()) - np.repeat(rows, counts)
    values = token_borders[index] - np.repeat(token_borders[borders[:-1]], counts)
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(counts)]), type=pa.int32()), pa.array(values, type=pa.int64())
    )
