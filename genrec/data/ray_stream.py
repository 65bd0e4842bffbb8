"""Ray Data's side of the data stream: chunks of the plan in, one worker's blocks of micro-batches out.

    plan -> chunks -> chunk_table (a task a chunk) -> rows_for_workers -> repartition into one worker's block
         -> streaming_split -> stream.worker_batches -> the training loop

Blocks of equal row counts make `streaming_split` deal them to the workers strictly in turn (a test pins it).
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genrec.data.micro_batches import MICRO_BATCH_SCHEMA, chunk_table, rows_for_workers
from genrec.data.plan import Chunk, Plan, PlanSpec

if TYPE_CHECKING:
    import ray.data


def ray_dataset(plan: Plan, *, start_step: int, end_step: int, workers: int) -> "ray.data.Dataset":
    """A lazy Ray Data set of the remaining micro-batches, laid out for `streaming_split(workers, equal=True)`."""
    import ray.data

    rule = plan.spec.rule
    block_rows = rule.steps_per_block * rule.micro_batches_per_step // workers
    chunks = [{"chunk": json.dumps(asdict(c))} for c in plan.chunks(start_step=start_step, end_step=end_step)]
    tables = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _ChunkTask(plan.spec, workers), batch_size=1, batch_format="numpy"
    )
    dataset = tables.repartition(target_num_rows_per_block=block_rows, strict=True)
    dataset.context.custom_execution_callback_classes = [_pace()]
    return dataset


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
    """The map task: one chunk in, its micro-batches out."""

    def __init__(self, spec: PlanSpec, workers: int) -> None:
        self.spec = spec
        self.workers = workers
        self.__name__ = "micro_batches"

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        rule = self.spec.rule
        for text in batch["chunk"]:
            values = json.loads(text)
            groups = tuple((path, group) for path, group in values.pop("row_groups"))
            yield rows_for_workers(
                chunk_table(self.spec, Chunk(**values, row_groups=groups)),
                workers=self.workers,
                steps_per_block=rule.steps_per_block,
                parts=rule.micro_batches_per_step,
            )


def ray_tables(shard: "ray.data.DataIterator") -> Iterator[pa.Table]:
    """One worker's micro-batches from its split of `ray_dataset`."""
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield table.select(MICRO_BATCH_SCHEMA.names)


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
