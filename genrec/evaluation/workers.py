"""The workers that share an evaluation, and what they tell each other. Everything goes through one sum over them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all workers and returns the sum; may work in place."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This worker's `rank` among `count`, and how they sum; `all_reduce` is None where there is one worker.

    Every method is called by all workers alike.
    """

    rank: int = 0
    count: int = 1
    all_reduce: AllReduce | None = None

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers; `values` may be changed."""
        return values if self.all_reduce is None else self.all_reduce(values)

    def gather(self, values: Tensor) -> Tensor:
        """The `values` of every worker, [count, ...]; they have the same shape everywhere.

        Each worker adds its own to zeros, so the sum is exact, and twice the traffic of an all-gather.
        """
        everyone = torch.zeros(self.count, *values.shape, dtype=values.dtype, device=values.device)
        everyone[self.rank] = values
        return self.sum(everyone)

    def gather_rows(self, values: Tensor) -> list[Tensor]:
        """The rows of every worker, a tensor a worker; they may have different numbers of them."""
        sizes = self.gather(torch.tensor(values.shape[0], device=values.device)).tolist()
        padded = torch.zeros(max(sizes), *values.shape[1:], dtype=values.dtype, device=values.device)
        padded[: values.shape[0]] = values
        return [rows[:size] for rows, size in zip(self.gather(padded), sizes, strict=True)]


ALONE = Workers()
