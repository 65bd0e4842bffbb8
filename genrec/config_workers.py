"""How many workers a run may have, and which numbers of micro-batches they can share."""

import math
from typing import Any

MAX_WORKERS = 65_536
MAX_MICRO_BATCHES = 65_536

RESOURCE_STEP = 0.0625
"""Where the number of workers is a range, Ray divides sums of floats and rounds down: with 0.1 CPUs a worker, room for
eight looks like room for seven. Multiples of 1/16 are exact."""

Workers = int | tuple[int, int]
"""A number of workers, or the smallest and the largest."""


def checked_workers(value: Any) -> Workers:
    """The number or the range that a config gives; raises ValueError for anything else."""
    pair = isinstance(value, list | tuple)
    numbers = list(value) if pair else [value, value]
    whole = len(numbers) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if not whole or not 1 <= numbers[0] <= numbers[1] <= MAX_WORKERS:
        raise ValueError(
            f"{value!r} must be a number from 1 to {MAX_WORKERS:,}, or [smallest, largest]; use 2, or [1, 2]"
        )
    return (numbers[0], numbers[1]) if pair else numbers[0]


def check_shares(parts: int, workers: Workers) -> None:
    """Raises ValueError unless every number of `workers` divides `parts` micro-batches."""
    if isinstance(workers, int):
        if parts % workers:
            raise ValueError(
                f"batch.micro_batches_per_step ({parts}) must be a multiple of cluster.workers ({workers}); "
                f"use {(parts // workers + 1) * workers} micro-batches or a number of workers that divides {parts}"
            )
        return
    sizes = range(workers[0], workers[1] + 1)
    wrong = [size for size in sizes if parts % size]
    if wrong:
        names = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(
            f"batch.micro_batches_per_step ({parts}) must be a multiple of every number of workers in cluster.workers "
            f"{list(workers)}, and {names} {'do' if len(wrong) > 1 else 'does'} not divide it; "
            f"{_shared_by_all(parts, sizes)}"
        )


def _shared_by_all(parts: int, sizes: range) -> str:
    """Which numbers of micro-batches all sizes divide: the next ones above `parts`."""
    shared = 1
    for size in sizes:
        shared = math.lcm(shared, size)
        if shared > MAX_MICRO_BATCHES:
            return f"no number up to {MAX_MICRO_BATCHES:,} would do; choose a smaller range"
    first = (parts // shared + 1) * shared
    return f"use {first} micro-batches (every multiple of {shared} would do) or another range"


def check_countable(workers: Workers, resources: dict[str, float]) -> None:
    """Raises ValueError unless Ray counts right how many workers with these `resources`, by setting, fit a machine."""
    for name, value in resources.items():
        if not isinstance(workers, int) and value % RESOURCE_STEP:
            exact = (value // RESOURCE_STEP + 1) * RESOURCE_STEP
            raise ValueError(
                f"{name} ({value:g}) must be a multiple of {RESOURCE_STEP} where workers is a range ({list(workers)}), "
                f"because Ray counts others wrong; use {exact:g}"
            )
