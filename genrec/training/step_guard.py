"""Decides, on all workers alike, whether a step's update is applied, and what happens when it must not be.

A step is poisoned when its loss or its gradient's norm is NaN or Inf, or when the norm is far above its running median.
The engine asks `allows` once a step, when the gradient is reduced and nothing has been changed yet; a loss that is no
number makes the gradient NaN (engine.py), so every worker sees it in the norm, at no cost. Whether a norm is too large
is agreed by a vote, because norms may differ in their last bit between unlike machines.

Whether a worker has been told to leave (preemption.py) is summed over the workers too, but nobody waits for that: the
sum that one step starts is read in the next.

What was poisoned is written to poisoned.jsonl in the run directory, one line a step, before anything else happens.
"""

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.batch import MicroBatchId
from genrec.errors import RewindError, RunError
from genrec.run_dir import read_metrics
from genrec.training.context import WorkerContext
from genrec.training.preemption import notice_of_process
from genrec.training.state import TrainState
from genrec.training.tracking import drop_cut_line

POISONED_FILE = "poisoned.jsonl"

NUM_NORMS = 101
"""Gradient norms that the running median is of."""

MIN_NORMS = 20
"""Norms that there must be before one of them can be too large."""

MicroBatchLoss = tuple[MicroBatchId | None, float]


class StepGuard:
    """One for each worker, made by all together: the engine calls `allows`, the loop `check`, both once a step."""

    def __init__(self, config: ExperimentConfig, context: WorkerContext, state: TrainState) -> None:
        self.faults = config.faults
        self.parts = config.batch.micro_batches_per_step
        self.context = context
        self.state = state
        self.told_to_leave = False
        """Whether a worker has been told to leave, as far as all of them know."""
        self.asks_cluster = False
        """Whether all workers ask the cluster after this step."""
        self.asks_to_stop = False
        """Set by worker 0 when results that only it has seen end the run."""
        self.told_to_stop = False
        """The same, as far as all workers know."""
        self._notice = notice_of_process()
        self._path = context.run.root / POISONED_FILE
        known = read_metrics(self._path)
        self._known = self._as_worker_0({int(line["step"]) for line in known})
        self._left_out = self._as_worker_0({int(line["step"]) for line in known if line["policy"] == "rewind"})
        self._notices: Callable[[], Tensor] | None = None
        self._norms: deque[float] = deque(maxlen=NUM_NORMS)
        self._norm: float | None = None
        self._poisoned = self._skipped = False

    def allows(self, norm: float | None) -> bool:
        """Whether the update of the step may be applied; `norm` is the norm of its whole gradient, before clipping."""
        self._norm = norm
        self._exchange_notices()
        self._skipped = self.state.step in self._left_out
        self._poisoned = self._reason() is not None
        if self.faults.max_gradient_norm_ratio is not None:
            self._poisoned = bool(self.context.all_reduce(torch.tensor(float(self._poisoned))).item())
        if self._poisoned or self._skipped:
            return False
        if norm is not None:
            self._norms.append(norm)
        return True

    def check(self, losses: Sequence[MicroBatchLoss]) -> bool:
        """Whether the step's update was applied; `losses` are this worker's micro-batches of the step.

        Raises RunError when a poisoned step ends the run, RewindError when the run goes back; on all workers alike.
        """
        if self._skipped:
            return False
        if not self._poisoned:
            return True
        step = self.state.step
        line = {
            "step": step,
            "policy": self.faults.on_poisoned_step,
            "gradient_norm": _text(self._norm),
            "median_gradient_norm": statistics.median(self._norms) if self._norms else None,
            "micro_batches": self._of_all_workers(losses),
        }
        self._write(step, line)
        if self.faults.on_poisoned_step == "stop" or len(self._known) > self.faults.max_poisoned_steps:
            raise RunError(self._explain(step, line))
        if self.faults.on_poisoned_step == "rewind":
            raise RewindError(f"Step {step} is poisoned: the run goes back to its last checkpoint and leaves it out.")
        return False

    def _exchange_notices(self) -> None:
        """Starts to sum this step's notices, and takes those of the step before; a single worker takes its own."""
        asks = self.context.rank == 0 and self._notice.ask_is_due()
        votes = [float(self._notice.given), float(asks), float(self.asks_to_stop)]
        started = self.context.start_all_reduce(torch.tensor(votes))
        ready = started if self.context.workers == 1 else self._notices
        self._notices = started
        if ready is not None:
            self.told_to_leave, self.asks_cluster, self.told_to_stop = (bool(vote) for vote in ready().tolist())

    def _as_worker_0(self, steps: set[int]) -> set[int]:
        """What worker 0 has read: workers that read a shared file system at different moments must not disagree."""
        if self.context.workers == 1:
            return steps
        mine = sorted(steps) if self.context.rank == 0 else []
        count = int(self.context.all_reduce(torch.tensor(len(mine))).item())
        values = torch.tensor(mine, dtype=torch.int64) if mine else torch.zeros(count, dtype=torch.int64)
        return set(self.context.all_reduce(values).tolist()) if count else set()

    def _reason(self) -> str | None:
        norm, ratio = self._norm, self.faults.max_gradient_norm_ratio
        if norm is None:
            return None
        if not math.isfinite(norm):
            return f"has the gradient norm {norm}"
        if ratio is None or len(self._norms) < MIN_NORMS:
            return None
        median = statistics.median(self._norms)
        return f"has the gradient norm {norm:.4g}, and its median is {median:.4g}" if norm > ratio * median else None

    def _of_all_workers(self, losses: Sequence[MicroBatchLoss]) -> list[dict[str, Any]]:
        """Ids and losses of the whole step, in the order of its parts."""
        table = torch.zeros(self.parts, 4, dtype=torch.float64)  # [part, (epoch, chunk, position, loss)]
        for number, (micro_batch_id, loss) in enumerate(losses):
            row = [*(micro_batch_id or (0, 0, 0)), loss]
            table[self.context.rank + number * self.context.workers] = torch.tensor(row, dtype=torch.float64)
        rows = self.context.all_reduce(table).tolist()
        return [{"id": [int(part) for part in ids], "loss": _text(loss)} for *ids, loss in rows]

    def _write(self, step: int, line: dict[str, Any]) -> None:
        """Adds the line, once a step however often it is repeated; no worker goes on before it is on disk."""
        if self.context.rank == 0 and (step not in self._known or line["policy"] == "rewind"):
            drop_cut_line(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._known.add(step)
        self.context.all_reduce(torch.zeros(1))

    def _explain(self, step: int, line: dict[str, Any]) -> str:
        bad = [part for part in line["micro_batches"] if isinstance(part["loss"], str)]
        what = (
            f"The loss of micro-batch {tuple(bad[0]['id'])} in step {step} is {bad[0]['loss']}"
            if bad
            else f"Step {step} {self._reason() or 'is poisoned'}"
        )
        if self.faults.on_poisoned_step == "stop":
            way_out = "or go on without such steps with faults.on_poisoned_step=skip"
        else:
            way_out = f"or raise faults.max_poisoned_steps ({self.faults.max_poisoned_steps}), which is used up"
        return (
            f"{what}; lower optimizer.lr, or set optimizer.gradient_clipping=1.0, {way_out}. "
            f"The micro-batches are in {self._path}."
        )


def _text(value: float | None) -> float | str | None:
    """JSON has no NaN and no Inf: they are written as words."""
    return value if value is None or math.isfinite(value) else str(value)
