"""Workers as threads, whose sum waits for all of them: a call that one of them misses is an error, not a hang."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def together(run: Callable[[int, Callable[[Tensor], Tensor]], Result], workers: int) -> list[Result]:
    """What `run(rank, all_reduce)` returns on each worker. Tensors of different shapes are never summed."""
    barrier = threading.Barrier(workers, timeout=30)
    values: list[Tensor] = [torch.zeros(0)] * workers

    def worker(rank: int) -> Result:
        def all_reduce(value: Tensor) -> Tensor:
            values[rank] = value
            barrier.wait()
            total = torch.stack(values).sum(0, dtype=value.dtype)
            barrier.wait()
            return total

        try:
            return run(rank, all_reduce)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(worker, range(workers)))
