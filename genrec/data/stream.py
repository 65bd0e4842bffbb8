"""A worker's side of the data stream: tables of micro-batches in, `Batch` by `Batch` out, order checked.

The tables come from Ray Data (ray_stream.py) or from this process (`local_tables`); both give the same bytes. Worker
`w` of `W` receives parts `p` with `p % W == w` of every step, in order, whatever brings them.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from genrec.data.batch import Batch, MicroBatchId
from genrec.data.micro_batches import worker_tables
from genrec.data.plan import Plan
from genrec.data.schema import NO_TARGET
from genrec.data.target_actions import EVERY_TARGET, TargetRule
from genrec.errors import RunError

PREFETCHED_BLOCKS = 8


class Place(NamedTuple):
    """Where a micro-batch stands in the run."""

    step: int
    part: int
    epochs_done: float
    """Epochs done once its step is done."""
    ends_epoch: bool


def local_tables(plan: Plan, *, start_step: int, end_step: int, rank: int, workers: int) -> Iterator[pa.Table]:
    """One worker's micro-batches, read in this process; the next ones are packed while these are trained on."""
    pending: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=PREFETCHED_BLOCKS)
    stopped = threading.Event()

    def produce() -> None:
        try:
            chunks = plan.chunks(start_step=start_step, end_step=end_step)
            span = {"start_step": start_step, "end_step": end_step}
            for table in worker_tables(plan.spec, chunks, ranks=[rank], workers=workers, **span):
                if not _put(pending, table, stopped):
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
    tables: Iterator[pa.Table],
    *,
    start_step: int,
    end_step: int,
    rank: int,
    workers: int,
    parts: int,
    targets: TargetRule = EVERY_TARGET,
) -> Iterator[tuple[Place, Batch]]:
    """The worker's micro-batches of steps `[start_step, end_step)`; raises RunError when one is out of order.

    `targets` is the rule that the plan has.
    """
    step, part = start_step, rank
    for table in tables:
        for place, batch in batches_of(table, targets):
            if place.step < start_step:
                continue  # trained before the restart
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


def batches_of(table: pa.Table, rule: TargetRule = EVERY_TARGET) -> Iterator[tuple[Place, Batch]]:
    """The `Batch` of every row, and its place in the run; `rule` says which events are targets, and what they weigh.

    Columns are converted once for all rows; a row's tensors are views of them.
    """
    scalars = {name: table[name].to_pylist() for name in _SCALARS}
    lengths = _values(table, "lengths")
    inputs, targets = _tokens(lengths)
    items, times, actions = (_values(table, name) for name in ("items", "times", "actions"))
    tokens = {
        "items": items[inputs].astype(np.int64),
        "times": times[inputs],
        "actions": actions[inputs].astype(np.int64),
        "targets": items[targets].astype(np.int64),
        "target_times": times[targets],
    }
    if rule.next_events:
        tokens |= {"next_items": tokens["targets"], "next_actions": actions[targets].astype(np.int64)}
    target_values = _values(table, "values")[targets] if rule.reads_values else None
    if rule.next_values and target_values is not None:
        tokens["next_values"] = target_values
    if rule.actions is not None:
        tokens["targets"] = np.where(rule.chosen(actions[targets]), tokens["targets"], NO_TARGET)
    weights = rule.weights_of(actions[targets], target_values)
    if weights is not None:
        tokens["target_weights"] = weights
    windows = {name: torch.from_numpy(_values(table, name).astype(np.int64)) for name in ("users", "starts")}
    of_tokens = {name: torch.from_numpy(values) for name, values in tokens.items()}
    pools = _pools_of(table)
    window_borders = _row_borders(table, "lengths")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    for row in range(table.num_rows):
        first, end = int(window_borders[row]), int(window_borders[row + 1])
        values = {name: column[row] for name, column in scalars.items()}
        batch_id = MicroBatchId(values["epoch"], values["chunk"], values["position"])
        named: dict[str, Any] = {name: column[first:end] for name, column in windows.items()}
        named |= {name: values[name] for name in _SUMS}
        if pools is not None:
            named["negatives"] = pools[row]
        if first == end:
            named |= {name: torch.zeros(1, dtype=column.dtype) for name, column in of_tokens.items()} | _PADDING
            if rule.next_values:
                named["next_values"] = torch.full((1,), torch.nan)
            batch = Batch(**named, micro_batch_id=batch_id)
        else:
            span = slice(int(offsets[first]), int(offsets[end]))
            named |= {name: column[span] for name, column in of_tokens.items()}
            batch = Batch(
                **named,
                offsets=torch.from_numpy(offsets[first : end + 1] - offsets[first]),
                micro_batch_id=batch_id,
            )
        yield _place(values), batch


_SUMS = ("step_targets", "step_weight", "step_actions", "step_values")
"""What is told of the whole step."""

_SCALARS = ("step", "part", "epoch", "chunk", "position", "epoch_first_step", "epoch_num_steps", *_SUMS)

# A micro-batch that got no window (fewer windows than micro-batches) must still run forward and backward, because every
# worker does: it gets one padding token, all 0, without a target.
_PADDING = {"targets": torch.tensor([NO_TARGET]), "offsets": torch.tensor([0, 1])}


def _pools_of(table: pa.Table) -> tuple[torch.Tensor, ...] | None:
    """The pool of negatives of every row, or None where the stream brings none."""
    if table["negatives"].null_count:
        return None
    pools = torch.from_numpy(_values(table, "negatives").astype(np.int64))
    return pools.tensor_split(torch.from_numpy(_row_borders(table, "negatives")[1:-1]))


def _place(values: dict[str, int]) -> Place:
    done, steps = values["step"] + 1 - values["epoch_first_step"], values["epoch_num_steps"]
    return Place(values["step"], values["part"], values["epoch"] + done / steps, done == steps)


def _tokens(lengths: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which events are inputs and which are targets, for windows of `lengths` tokens: all but the last, the first."""
    num_events = int(lengths.sum()) + len(lengths)
    is_input = np.ones(num_events + 1, dtype=np.bool_)
    is_input[np.cumsum(lengths + 1, dtype=np.int64) - 1] = False
    inputs = np.flatnonzero(is_input[:-1])
    return inputs, inputs + 1


def _values(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """All rows' values of a list column, one row after another."""
    values: npt.NDArray[Any] = table[name].combine_chunks().flatten().to_numpy()
    return values


def _row_borders(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    counts = pc.list_value_length(table[name].combine_chunks()).to_numpy()
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
