"""The vectors that a tokenizer is trained on: memory-mapped, read batch by batch, each worker its own share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all workers and returns the sum; may work in place."""

Progress = Callable[[str, float, float], None]
"""Told what is being done, how much of it is done, and how much there is."""


def quiet(phase: str, done: float, total: float) -> None:
    """Progress that nobody watches."""


def pick_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Team:
    """The workers that train a tokenizer together: this one is `rank` of `count`; `all_reduce` sums over them."""

    rank: int = 0
    count: int = 1
    all_reduce: AllReduce | None = None

    @property
    def is_first(self) -> bool:
        """Whether this worker reads, writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all workers have come here."""
        if self.all_reduce is not None:
            self.all_reduce(torch.zeros(1))


ALONE = Team()
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Rows:
    """`vectors` float32 [num_rows, dim], of which `chosen` (rising) are trained on; this worker is `rank` of `count`.

    Only a batch of a worker's share is in memory at a time. Sums over the workers go through `all_reduce`.
    """

    vectors: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]
    rank: int = 0
    count: int = 1
    all_reduce: AllReduce | None = None
    device: torch.device = _CPU

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.vectors.shape[1])

    @property
    def share(self) -> npt.NDArray[np.int64]:
        """The chosen rows that are this worker's: a stretch, because files are read fastest in order."""
        return np.array_split(self.chosen, self.count)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers; `values` may be changed."""
        return values if self.all_reduce is None else self.all_reduce(values)

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """A copy of the vectors of rising rows, [num_rows, dim]."""
        is_stretch = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
        found = np.array(self.vectors[rows[0] : rows[-1] + 1]) if is_stretch else self.vectors[rows]
        return torch.from_numpy(found).to(self.device)

    def batches(self, num_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """This worker's share in order: the place of each batch in the share, and its vectors."""
        share = self.share
        for first in range(0, len(share), num_rows):
            place = slice(first, min(first + num_rows, len(share)))
            yield place, self.read(share[place])

    def sample(self, num_rows: int, generator: np.random.Generator) -> Tensor:
        """Chosen rows at random, at most `num_rows`, the same on every worker: each gives those of its share."""
        wanted = np.sort(generator.choice(self.chosen, size=min(num_rows, len(self.chosen)), replace=False))
        mine = np.isin(wanted, self.share)
        rows = torch.zeros(len(wanted), self.dim, device=self.device)
        rows[torch.from_numpy(mine)] = self.read(wanted[mine])
        return self.sum(rows)


def choose(has_vector: npt.NDArray[np.bool_], most: int, seed: int) -> npt.NDArray[np.int64]:
    """The rows with a vector, or a seeded sample of `most` of them, in rising order."""
    rows = np.flatnonzero(has_vector)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng([seed, 7]).choice(rows, size=most, replace=False))
    return rows
