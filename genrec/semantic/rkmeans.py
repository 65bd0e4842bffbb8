"""Residual k-means: level by level, k-means on what the levels before have left over.

Lloyd's algorithm over all chosen rows, batch by batch. What workers tell each other in a pass are sums and counts of
each code, so any number of workers gives the same codes. The start is k-means++ (Arthur and Vassilvitskii, 2007) on a
sample that all workers hold. Codes that no row picks are dead; they start again from the sample, by the same rule, as
centres that are added to the living.

Balanced: after each pass a code's price rises with the logarithm of how much fuller than the others it is, in units of
the mean squared distance, and rows pick by distance plus price. The prices are kept, so a new item picks the same way.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config import RKMeansTokenizer
from genrec.semantic.tokenizers import ItemTokenizer, squared_distances
from genrec.semantic.tokenizers_rows import Progress, Rows, quiet

SAMPLE_ROWS_PER_CODE = 32
GOOD_ENOUGH = 1e-4  # a pass that lowers the error by a smaller share is the last, unless codes are balanced
PRICE_STEP = 0.3


def fit_rkmeans(config: RKMeansTokenizer, rows: Rows, seed: int, progress: Progress = quiet) -> ItemTokenizer:
    """The trained tokenizer, the same on every worker of `rows`."""
    tokenizer = ItemTokenizer([rows.dim], config.sizes).to(rows.device).requires_grad_(False)
    for level in range(len(config.sizes)):
        _Level(config, rows, tokenizer, level, np.random.default_rng([seed, level])).fit(progress)
    return tokenizer


def plus_plus(sample: Tensor, centres: Tensor, wanted: int, generator: np.random.Generator) -> Tensor:
    """`centres` [n, dim] and as many rows of `sample` [num_rows, dim] as are missing to `wanted`.

    A row is drawn in proportion to its squared distance to the nearest centre so far; where all distances are zero
    (fewer different rows than codes), any row.
    """
    if len(centres) == 0:
        centres = sample[[int(generator.integers(len(sample)))]]
    nearest = squared_distances(sample, centres).amin(dim=1)
    while len(centres) < wanted:
        weights = nearest.cpu().double().numpy()
        total = weights.sum()
        row = int(generator.choice(len(sample), p=weights / total if total > 0 else None))
        centres = torch.cat([centres, sample[[row]]])
        nearest = torch.minimum(nearest, squared_distances(sample, sample[[row]])[:, 0])
    return centres


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a pass over the rows has summed, over all workers: the same numbers everywhere."""

    sums: Tensor  # float64 [size, dim]
    counts: Tensor  # float64 [size]
    error: float  # squared distance to the picked codes


class _Level:
    """One level's k-means; the levels below it are trained."""

    def __init__(
        self, config: RKMeansTokenizer, rows: Rows, tokenizer: ItemTokenizer, level: int, rng: np.random.Generator
    ) -> None:
        self.config, self.rows, self.tokenizer, self.level, self.rng = config, rows, tokenizer, level, rng
        self.size = config.sizes[level]

    def fit(self, progress: Progress) -> None:
        """Trains the level's codebook and prices in place."""
        sample = self._left(self.rows.sample(self.size * SAMPLE_ROWS_PER_CODE, self.rng))
        centres = plus_plus(sample, sample[:0], self.size, self.rng)
        prices = torch.zeros(self.size, device=self.rows.device)
        before = float("inf")
        for done in range(self.config.iterations):
            progress(
                "k-means", self.level * self.config.iterations + done, len(self.config.sizes) * self.config.iterations
            )
            found = self._pass(centres, prices)
            alive = found.counts > 0
            centres = (found.sums[alive] / found.counts[alive, None]).float()
            prices = prices[alive]
            if self.config.balance and len(self.rows.chosen):
                spread = found.error / len(self.rows.chosen)
                fullness = (found.counts[alive] * self.size / len(self.rows.chosen)).log().float()
                prices = prices + self.config.balance * PRICE_STEP * spread * fullness
            num_dead = self.size - len(centres)
            if num_dead:
                centres = plus_plus(sample, centres, self.size, self.rng)
                prices = torch.cat([prices, prices.new_full((num_dead,), float(prices.min()))])
            elif not self.config.balance and found.error >= before * (1 - GOOD_ENOUGH):
                break
            before = found.error
        self.tokenizer.books[self.level].copy_(centres)
        self.tokenizer.prices[self.level].copy_(prices - prices.min())

    def _left(self, vectors: Tensor) -> Tensor:
        for level in range(self.level):
            picked = self.tokenizer.costs(vectors, level).argmin(dim=1)
            vectors = vectors - self.tokenizer.books[level][picked]
        return vectors

    def _pass(self, centres: Tensor, prices: Tensor) -> _Pass:
        device = self.rows.device
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=device)
        counts = torch.zeros(len(centres), dtype=torch.float64, device=device)
        error = torch.zeros(1, dtype=torch.float64, device=device)
        for _, vectors in self.rows.batches(self.config.rows_per_batch):
            left = self._left(vectors)
            distances = squared_distances(left, centres)
            picked = (distances + prices).argmin(dim=1)
            sums.index_add_(0, picked, left.double())
            counts += torch.bincount(picked, minlength=len(centres))
            error += distances.gather(1, picked[:, None]).double().sum()
        return _Pass(self.rows.sum(sums), self.rows.sum(counts), float(self.rows.sum(error)))
