"""Ray Data's side of the data stream: chunks of the plan in, one worker's blocks of micro-batches out.

    plan -> runs of chunks (`remaining_chunks`)
         -> worker_tables (a task a run) -> one row for each block of steps of a worker (`lay_out`)
         -> streaming_split -> stream.worker_batches -> the training loop

What remains to be trained does not depend on the number of workers. How it is laid out does, and with a range of
workers their number is known only when they are there.

A row holds one worker's micro-batches of a block of steps as one table, in Arrow's stream format. Ray
blocks of one row make `streaming_split` deal them to the workers strictly in turn (a test pins it), and the last steps
of a chunk may be a smaller row than the others.
"""

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genrec.data.micro_batches import worker_tables
from genrec.data.plan import Chunk, GroupVisit, Plan, PlanSpec

if TYPE_CHECKING:
    import ray.data


def remaining_chunks(plan: Plan, *, start_step: int, end_step: int) -> "ray.data.Dataset":
    """A Ray Data set of the chunks with steps `[start_step, end_step)`: a row for each task, an idle one if need be."""
    import ray.data

    groups = list(_grouped(plan.chunks(start_step=start_step, end_step=end_step), plan.chunk_tokens)) or [[]]
    rows = [
        {"chunks": json.dumps([asdict(chunk) for chunk in group]), "start_step": start_step, "end_step": end_step}
        for group in groups
    ]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def lay_out(remaining: "ray.data.Dataset", spec: PlanSpec, workers: int) -> "ray.data.Dataset":
    """The micro-batches of `remaining_chunks`, for `streaming_split(workers, equal=True)`; nothing is run yet."""
    # With batches of one row, Ray Data cuts the blocks in the map task itself.
    dataset = remaining.map_batches(_ChunkTask(spec, workers), batch_size=1, batch_format="numpy").repartition(
        target_num_rows_per_block=1, strict=True
    )
    dataset.context.custom_execution_callback_classes = [_pace()]
    dataset.context._max_num_blocks_in_streaming_gen_buffer = _blocks_ahead(spec, workers)
    return dataset


BYTES_AHEAD = 64 * 2**20
BYTES_PER_EVENT = 13
BYTES_PER_NEGATIVE = 4


def _blocks_ahead(spec: PlanSpec, workers: int) -> int:
    """Blocks that a task may have ready before the scheduling loop takes them.

    Ray Data's 2 would be all that a round moves: with the pause below, 8 blocks a second, however small.
    """
    rule = spec.rule
    pool_bytes = BYTES_PER_NEGATIVE * spec.pool_size * rule.micro_batches_per_step
    block_bytes = rule.steps_per_block * (rule.tokens_per_step * BYTES_PER_EVENT + pool_bytes) // workers
    return min(max(BYTES_AHEAD // block_bytes, 2), 64)


def _grouped(chunks: Iterable[Chunk], tokens: int) -> Iterator[list[Chunk]]:
    """Runs of chunks for one task each: one chunk of about `tokens`, or several epochs of a set that is smaller.

    The first run is one chunk, so that training starts soon.
    """
    run: list[Chunk] = []
    first = True
    for chunk in chunks:
        run.append(chunk)
        if first or sum(one.num_tokens for one in run) + chunk.num_tokens > tokens:
            yield run
            run, first = [], False
    if run:
        yield run


SCHEDULING_PAUSE_S = 0.05


def _pace() -> type[Any]:
    """An execution callback that pauses Ray Data's scheduling loop between two rounds.

    While the workers have blocks in hand, Ray 2.60's loop goes round without waiting for anything: on two cores it took
    0.4 of a core from training. A round serves everything that is ready, so a pause costs a block 50 ms at most.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pace(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(SCHEDULING_PAUSE_S)

    return Pace


class _ChunkTask:
    """The map task: a run of chunks in, their blocks of micro-batches out."""

    def __init__(self, spec: PlanSpec, workers: int) -> None:
        self.spec = spec
        self.workers = workers
        self.__name__ = "micro_batches"

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for text, start_step, end_step in zip(batch["chunks"], batch["start_step"], batch["end_step"], strict=True):
            chunks = [
                Chunk(**{**values, "row_groups": tuple(GroupVisit(*visit) for visit in values["row_groups"])})
                for values in json.loads(text)
            ]
            span = {"start_step": int(start_step), "end_step": int(end_step)}
            for table in worker_tables(self.spec, chunks, ranks=range(self.workers), workers=self.workers, **span):
                yield pa.table({"micro_batches": _to_row(table)})


def ray_tables(shard: "ray.data.DataIterator") -> Iterator[pa.Table]:
    """One worker's micro-batches from its split of `lay_out`."""
    for rows in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        for value in rows["micro_batches"]:
            with pa.ipc.open_stream(value.as_buffer()) as stream:
                yield stream.read_all()


def _to_row(table: pa.Table) -> pa.LargeBinaryArray:
    """One value: the table in Arrow's stream format, written once and copied nowhere."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data = sink.getvalue()
    borders = pa.array([0, data.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, borders, data])


def start_early(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; the first is asked for now, so that Ray Data starts up while the model is being built."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="first-table")
    first = pool.submit(next, tables, None)
    pool.shutdown(wait=False)

    def all_tables() -> Iterator[pa.Table]:
        table = first.result()
        if table is not None:
            yield table
            yield from tables

    return all_tables()
