"""Residual k-means: level by level, k-means on what the levels before have left over.

Lloyd's algorithm over all chosen rows, batch by batch. What workers tell each other in a pass are sums and counts of
each code, so any number of workers gives the same codes. The start is k-means++ (Arthur and Vassilvitskii, 2007) on a
sample that all workers hold. Codes that no row picks are dead; they start again from the sample, by the same rule, as
centres that are added to the living.

Balanced: at first, codes that few rows pick move to where the full ones are. Then a code's price rises with the
logarithm of how much fuller it is than an equal share, in units of the mean squared distance to it, and rows pick by
distance plus price. Steps shrink from pass to pass, and the pass whose fullest code was least full counts. The prices
are kept, so a new item picks the same way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.config import RKMeansTokenizer
from genrec.semantic.tokenizers import ItemTokenizer, in_cache, squared_distances
from genrec.semantic.tokenizers_rows import Progress, Rows, quiet

SAMPLE_ROWS_PER_CODE = 32
GOOD_ENOUGH = 1e-4  # a pass that lowers the error by a smaller share is the last, unless codes are balanced
PRICE_STEP = 0.4
MOVING_SHARE = 0.5  # balanced: in this share of the passes, codes that few rows pick move to where the rows are
MOVED_BELOW = 0.3  # of an equal share


def fit_rkmeans(config: RKMeansTokenizer, rows: Rows, seed: int, progress: Progress = quiet) -> ItemTokenizer:
    """The trained tokenizer, the same on every worker of `rows`."""
    tokenizer = ItemTokenizer([rows.dim], config.sizes).to(rows.device).requires_grad_(False)
    # Of this worker's rows; what is left over is then a few look-ups, not a few matrix products a pass.
    codes = np.zeros((len(rows.share), len(config.sizes)), dtype=np.int32)
    for level in range(len(config.sizes)):
        trained = _Level(config, rows, tokenizer, codes[:, :level], np.random.default_rng([seed, level]))
        trained.fit(progress)
        if level + 1 < len(config.sizes):
            codes[:, level] = trained.pick()
    return tokenizer


def plus_plus(sample: Tensor, centres: Tensor, wanted: int, generator: np.random.Generator) -> Tensor:
    """`centres` [n, dim] and as many rows of `sample` [num_rows, dim] as are missing to `wanted`.

    A row is drawn in proportion to its squared distance to the nearest centre so far; where all distances are zero
    (fewer different rows than codes), any row.
    """
    if len(centres) == 0:
        centres = sample[[int(generator.integers(len(sample)))]]
    squares = sample.square().sum(dim=1)
    nearest = squared_distances(sample, centres).amin(dim=1)
    while len(centres) < wanted:
        weights = nearest.cpu().double().numpy()
        total = weights.sum()
        row = int(generator.choice(len(sample), p=weights / total if total > 0 else None))
        centres = torch.cat([centres, sample[[row]]])
        to_new = torch.addmv(squares + squares[row], sample, sample[row], alpha=-2)
        nearest = torch.minimum(nearest, to_new.clamp_min_(0))
    return centres


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a pass over the rows has summed, over all workers: the same numbers everywhere."""

    sums: Tensor  # float64 [size, dim]
    counts: Tensor  # float64 [size]
    errors: Tensor  # float64 [size], squared distance of each code's rows to it

    @property
    def error(self) -> float:
        """Squared distance of all rows to their codes."""
        return float(self.errors.sum())


class _Level:
    """One level's k-means; the levels below it are trained."""

    def __init__(
        self,
        config: RKMeansTokenizer,
        rows: Rows,
        tokenizer: ItemTokenizer,
        codes: npt.NDArray[np.int32],
        rng: np.random.Generator,
    ) -> None:
        self.config, self.rows, self.tokenizer, self.codes, self.rng = config, rows, tokenizer, codes, rng
        self.level = codes.shape[1]
        self.size = config.sizes[self.level]

    def fit(self, progress: Progress) -> None:
        """Trains the level's codebook and prices in place."""
        passes, balance, num_rows = self.config.iterations, self.config.balance, len(self.rows.chosen)
        sample = self.rows.sample(self.size * SAMPLE_ROWS_PER_CODE, self.rng)
        for level in range(self.level):
            sample = sample - self.tokenizer.books[level][self.tokenizer.costs(sample, level).argmin(dim=1)]
        centres = plus_plus(sample, sample[:0], self.size, self.rng)
        prices = torch.zeros(self.size, device=self.rows.device)
        best = (float("inf"), centres, prices)  # what is least of it: the error, or of balanced codes the fullest
        for done in range(passes + 1):  # the last one only looks
            progress("k-means", self.level * passes + done, len(self.config.sizes) * passes)
            found = self._pass(centres, prices)
            moving = balance > 0 and done < MOVING_SHARE * passes
            badness = float(found.counts.max()) if balance else found.error
            good_enough = not balance and badness >= best[0] * (1 - GOOD_ENOUGH) and bool(found.counts.min() > 0)
            if badness < best[0] and not moving:
                best = (badness, centres, prices)
            if good_enough or done == passes:
                break
            kept = found.counts > (MOVED_BELOW * num_rows / self.size if moving else 0)
            centres = (found.sums[kept] / found.counts[kept, None]).float()
            prices = prices[kept]
            if balance and not moving:
                prices = prices + self._price_changes(found, 1 - done / passes)[kept]
            if len(centres) < self.size:
                missing = self.size - len(centres)
                centres = self._moved(sample, centres, missing) if moving else self._revived(sample, centres)
                prices = torch.cat([prices, prices.new_zeros(missing)])
        self.tokenizer.books[self.level].copy_(best[1])
        self.tokenizer.prices[self.level].copy_(best[2] - best[2].min())

    def _revived(self, sample: Tensor, centres: Tensor) -> Tensor:
        return plus_plus(sample, centres, self.size, self.rng)

    def _moved(self, sample: Tensor, centres: Tensor, missing: int) -> Tensor:
        """The centres, and as many rows of the sample, at random, of the codes with more than an equal share."""
        picked = squared_distances(sample, centres).argmin(dim=1)
        full = torch.bincount(picked, minlength=len(centres)) > len(sample) / self.size
        rows = torch.nonzero(full[picked])[:, 0].cpu().numpy()
        drawn = self.rng.choice(rows if len(rows) >= missing else len(sample), size=missing, replace=False)
        return torch.cat([centres, sample[torch.from_numpy(drawn).to(sample.device)]])

    def _price_changes(self, found: _Pass, step: float) -> Tensor:
        """By how much the price of each code rises, [size]: by its mean squared distance and the log of its share."""
        fullness = (found.counts.clamp_min(0.5) * self.size / len(self.rows.chosen)).log().clamp(-1, 1)
        scale = found.errors / found.counts.clamp_min(1)
        scale = torch.minimum(scale, torch.tensor(found.error / len(self.rows.chosen), device=scale.device))
        return (self.config.balance * PRICE_STEP * step * scale * fullness).float()

    def pick(self) -> npt.NDArray[np.int32]:
        """The level's code of each of this worker's rows, once it is trained."""
        batches = self._left_over()
        return np.concatenate(
            [self.tokenizer.costs(left, self.level).argmin(dim=1).cpu().numpy() for left in batches]
            or [np.zeros(0, dtype=np.int64)]
        ).astype(np.int32)

    def _left_over(self) -> Iterator[Tensor]:
        """What the levels before have left of this worker's rows, stretch by stretch of each batch."""
        for place, vectors in self.rows.batches(self.config.rows_per_batch):
            codes = torch.from_numpy(self.codes[place]).to(vectors.device)
            first = 0
            for left in in_cache(vectors):
                for level in range(self.level):
                    left -= self.tokenizer.books[level][codes[first : first + len(left), level]]
                first += len(left)
                yield left

    def _pass(self, centres: Tensor, prices: Tensor) -> _Pass:
        device = self.rows.device
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=device)
        counts = torch.zeros(len(centres), dtype=torch.float64, device=device)
        errors = torch.zeros_like(counts)
        constant = centres.square().sum(dim=1)
        for left in self._left_over():
            # |row|^2 is the same for all codes, so the nearest is found without it.
            scores = torch.addmm(constant + prices, left, centres.T, alpha=-2)
            least, picked = scores.min(dim=1)
            batch = torch.zeros_like(centres).index_add_(0, picked, left)
            sums += batch
            counts += torch.bincount(picked, minlength=len(centres))
            distances = (torch.linalg.vector_norm(left, dim=1).square() + least - prices[picked]).clamp_min(0)
            errors.index_add_(0, picked, distances.double())
        return _Pass(self.rows.sum(sums), self.rows.sum(counts), self.rows.sum(errors))
