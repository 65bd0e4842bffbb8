"""Which items the target is compared with, and how much each of them stands for (logQ correction).

A *pool* is drawn with repetition from what training knows: uniformly, by popularity, or from the targets of the whole
step (`Batch.negatives`, drawn in the data stream so that it does not depend on the workers). Let E(i) be how often
item i is expected in it. Then the sum of exp(s_i) / E(i) over the pool has the expectation of the sum of exp(s_i) over
all items that can be drawn, so subtracting log E(i) from a negative's score makes the denominator of a softmax
unbiased. The target is there with certainty, E = 1, and is not corrected; a pool's item that is a row's own target is
left out for that row, so nothing counts twice. (The older form, Yi et al., 2019, corrects the target too, as though it
had been drawn; Khrylchenko et al., 2025, arXiv 2507.09331, show that this is biased.) A pool of several sources has the
sum of their E: each item stands for the same, whichever source it came from.

E of the targets of a step is their number times the item's share of all training events, with `sequence.mix` of those
of each part (data/target_shares.py). Where targets are chosen otherwise (`target_actions`, windows that leave events
out) that is an approximation, and biased.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genrec.models.item_table import ItemTable


class Negatives(NamedTuple):
    """Items to compare with, and what is added to the score of each, or None.

    ids [num_negatives], rising, shared by all rows, or [num_rows, num_negatives]; log_weights has the same shape.
    """

    ids: Tensor
    log_weights: Tensor | None


class NegativeSampler:
    """Draws negatives from torch's default CPU generator, which the training loop seeds by micro-batch."""

    def __init__(
        self,
        *,
        num_uniform: int = 0,
        num_popular: int = 0,
        num_in_batch: int = 0,
        popularity_power: float = 1.0,
        corrected: bool = False,
    ) -> None:
        """How many of each source; by popularity means in proportion to the training events ** `popularity_power`."""
        self.num_uniform = num_uniform
        self.num_popular = num_popular
        self.num_in_batch = num_in_batch
        self.popularity_power = popularity_power
        self.corrected = corrected
        self._shares = _Shares()

    @property
    def num_negatives(self) -> int:
        """The most that are drawn; a step with fewer targets than `num_in_batch` gives what it has."""
        return self.num_uniform + self.num_popular + self.num_in_batch

    def shared(self, item_table: ItemTable, pool: Tensor | None, device: torch.device) -> Negatives:
        """One set for all rows. `pool` are targets of the whole step; equal negatives are merged where corrected."""
        drawn = self._draw((), item_table)
        num_in_batch = 0
        if self.num_in_batch:
            if pool is None:
                raise ValueError("in-batch negatives come with the data stream, and this batch has no pool of them")
            num_in_batch = pool.shape[0]
            drawn.append(pool)
        ids = torch.cat(drawn)
        if not self.corrected:
            return Negatives(ids.sort().values.to(device), None)
        ids, counts = torch.unique_consecutive(ids.sort().values, return_counts=True)
        log_weights = counts.double().log() - self._expected(ids, num_in_batch, item_table).log()
        return Negatives(ids.to(device), log_weights.to(device))

    def per_position(self, num_rows: int, item_table: ItemTable, device: torch.device) -> Negatives:
        """A set of its own for each row: 8 bytes for every negative, 16 where corrected."""
        ids = torch.cat(self._draw((num_rows,), item_table), dim=1)
        log_weights = -self._expected(ids, 0, item_table).log().to(device) if self.corrected else None
        return Negatives(ids.to(device), log_weights)

    def _draw(self, shape: tuple[int, ...], item_table: ItemTable) -> list[Tensor]:
        drawn = []
        if self.num_uniform:
            drawn.append(torch.randint(1, item_table.num_train_items + 1, (*shape, self.num_uniform), device="cpu"))
        if self.num_popular:
            cumulative = self._shares.of(item_table, self.popularity_power).cumulative
            chances = torch.rand(*shape, self.num_popular, dtype=torch.float64, device="cpu") * cumulative[-1]
            drawn.append(torch.searchsorted(cumulative, chances, right=True).clamp_(max=cumulative.shape[0] - 1))
        return drawn

    def _expected(self, ids: Tensor, num_in_batch: int, item_table: ItemTable) -> Tensor:
        """How often each of `ids` is expected among the negatives, in fp64."""
        expected = torch.full(ids.shape, self.num_uniform / item_table.num_train_items, dtype=torch.float64)
        if self.num_popular:
            expected += self.num_popular * self._shares.of(item_table, self.popularity_power).shares[ids]
        if num_in_batch:
            popularity = self._shares.of(item_table, 1.0)
            # A refit's targets may have no event in training but the one of validation: what is drawn has one.
            shares = (popularity.shares if item_table.target_shares is None else item_table.target_shares)[ids]
            expected += num_in_batch * torch.where(shares > 0, shares, popularity.least)
        return expected


class _Popularity(NamedTuple):
    """By item index, fp64: each item's share of the draws, the sum of the shares up to it, and one event's share."""

    shares: Tensor
    cumulative: Tensor
    least: float


class _Shares:
    """Popularities, made once for each power. One of an item without a training event is 0: it is never drawn."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._made: dict[float, _Popularity] = {}

    def of(self, item_table: ItemTable, power: float) -> _Popularity:
        counts = item_table.train_counts
        if counts is None:
            raise ValueError("popularity and logQ need the training events of every item: set item_table.train_counts")
        if counts is not self._counts:
            self._counts, self._made = counts, {}
        if power not in self._made:
            weights = torch.where(counts > 0, counts.double() ** power, 0.0)
            total = weights.sum()
            shares = weights / total
            self._made[power] = _Popularity(shares, shares.cumsum(0), 1 / float(total))
        return self._made[power]
