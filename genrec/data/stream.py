"""A worker's side of the data stream: tables of micro-batches in, `Batch` by `Batch` out, order checked.

The tables come from Ray Data (ray_stream.py) or from this process (`local_tables`); both give the same bytes. Worker
`w` of `W` receives parts `p` with `p % W == w` of every step, in order, whatever brings them.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from genrec.data.batch import Batch, MicroBatchId
from genrec.data.micro_batches import chunk_table
from genrec.data.plan import Plan
from genrec.data.schema import NO_TARGET
from genrec.errors import RunError

PREFETCHED_CHUNKS = 2


class Place(NamedTuple):
    """Where a micro-batch stands in the run."""

    step: int
    part: int
    epochs_done: float
    """Epochs done once its step is done."""
    ends_epoch: bool


def local_tables(plan: Plan, *, start_step: int, end_step: int, rank: int, workers: int) -> Iterator[pa.Table]:
    """One worker's micro-batches, read in this process; the next chunk is packed while this one is trained on."""
    parts = plan.spec.rule.micro_batches_per_step
    pending: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=PREFETCHED_CHUNKS)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for chunk in plan.chunks(start_step=start_step, end_step=end_step):
                table = chunk_table(plan.spec, chunk)
                mine = table.filter(pa.array([row % parts % workers == rank for row in range(table.num_rows)]))
                if not _put(pending, mine, stopped):
                    return
            _put(pending, None, stopped)
        except BaseException as error:
            _put(pending, error, stopped)

    thread = threading.Thread(target=produce, name="micro-batches", daemon=True)
    thread.start()
    try:
        while (item := pending.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _put(target: "queue.Queue[Any]", item: Any, stopped: threading.Event) -> bool:
    """Waits for room, but not longer than the consumer lives."""
    while not stopped.is_set():
        try:
            target.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def worker_batches(
    tables: Iterator[pa.Table], *, start_step: int, end_step: int, rank: int, workers: int, parts: int
) -> Iterator[tuple[Place, Batch]]:
    """The worker's micro-batches of steps `[start_step, end_step)`; raises RunError when one is out of order."""
    step, part = start_step, rank
    for table in tables:
        for place, batch in batches_of(table):
            if place.step < start_step:
                continue  # trained before the restart; a block holds whole groups of steps
            if place.step >= end_step:
                return
            if (place.step, place.part) != (step, part):
                raise RunError(
                    f"Worker {rank} of {workers} expected micro-batch (step {step}, part {part}) and received "
                    f"(step {place.step}, part {place.part}); the data stream is out of order, start the run again."
                )
            yield place, batch
            part += workers
            if part >= parts:
                step, part = step + 1, rank
    if step < end_step:
        raise RunError(
            f"The data stream of worker {rank} ended before step {step} of {end_step}; start the run again to resume."
        )


def batches_of(table: pa.Table) -> Iterator[tuple[Place, Batch]]:
    """The `Batch` of every row, and its place in the run."""
    for row in range(table.num_rows):
        yield _place(table, row), _batch(table, row)


def _place(table: pa.Table, row: int) -> Place:
    step, epoch = table["step"][row].as_py(), table["epoch"][row].as_py()
    done = step + 1 - table["epoch_first_step"][row].as_py()
    steps = table["epoch_num_steps"][row].as_py()
    return Place(step, table["part"][row].as_py(), epoch + done / steps, done == steps)


def _batch(table: pa.Table, row: int) -> Batch:
    def tensor(name: str, filler: int = 0) -> torch.Tensor:
        values = table[name][row].values.to_numpy(zero_copy_only=False).astype(np.int64)
        return torch.from_numpy(values if len(values) else np.array([filler]))

    # A micro-batch that got no window (fewer windows than micro-batches) must still run forward and backward, because
    # every worker does: it gets one padding token without a target.
    offsets = tensor("offsets")
    return Batch(
        items=tensor("items"),
        times=tensor("times"),
        actions=tensor("actions"),
        targets=tensor("targets", NO_TARGET),
        target_times=tensor("target_times"),
        offsets=offsets if len(offsets) > 1 else torch.tensor([0, 1]),
        micro_batch_id=MicroBatchId(*(table[c][row].as_py() for c in ("epoch", "chunk", "position"))),
        step_targets=table["step_targets"][row].as_py(),
    )
