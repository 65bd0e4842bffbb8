"""Measures a stretch of steps: loss, events per second, share of time spent waiting for data, peak memory."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from genrec.training.clock import StepClock

T = TypeVar("T")


@dataclass(slots=True)
class StepMeter:
    """Sums since the last `reset`; one per worker."""

    loss_sum: float = 0.0
    tasks: dict[str, float] = field(default_factory=dict)
    """Loss sums of the tasks by name, where there are several."""
    num_targets: int = 0
    weight: float = 0.0
    num_steps: int = 0
    wait_s: float = 0.0
    excluded_s: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)

    def timed(self, items: Iterable[T], clock: StepClock) -> Iterator[T]:
        """The same items; the time spent waiting for each is counted as data wait, by `clock` too."""
        iterator = iter(items)
        while True:
            clock.switch("data_wait")
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - before
            clock.switch("other")
            yield item

    def add_tasks(self, losses: Mapping[str, float]) -> None:
        """Adds the tasks' loss sums of a step."""
        for name, loss in losses.items():
            self.tasks[name] = self.tasks.get(name, 0.0) + loss

    def elapsed_s(self) -> float:
        """Seconds since the last reset, without those spent on validation and checkpoints."""
        return time.perf_counter() - self.started_at - self.excluded_s

    def reset(self) -> None:
        """Starts a new stretch."""
        self.loss_sum = self.weight = self.wait_s = self.excluded_s = 0.0
        self.num_targets = self.num_steps = 0
        self.tasks.clear()
        self.started_at = time.perf_counter()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this worker: allocated on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
