"""What a model recommends, beyond whether it is right: how much of the catalogue, how unexpected, how evenly.

Over the lists of the k best items of all evaluated users:

    coverage@k  items that are in some list / items of the catalogue
    novelty@k   mean of -log2 p(item) over all places of all lists, in bits; p(item) is (events in training + 1) /
                (all training events + items of the catalogue), so that an item without events has a number too
    gini@k      Gini coefficient of how often each item of the catalogue is listed: 0 when all are listed equally often,
                near 1 when a few items fill all lists

Only how often each item was listed is kept, whole numbers, so the result is the same for any number of workers.
Coverage grows with the number of users: compare it over the same users only.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.evaluation.workers import Workers

IntArray = npt.NDArray[np.int64]


class Exposure:
    """How often each item has been listed, for several lengths of list at once."""

    def __init__(self, num_items: int, ks: Sequence[int], device: torch.device) -> None:
        self.ks = sorted(ks)
        self._counts = torch.zeros(len(ks), num_items + 1, dtype=torch.int64, device=device)
        """Row i: listings at places ks[i - 1] to ks[i] - 1; column 0 takes places that were left empty."""

    def add(self, items: Tensor) -> None:
        """Counts lists [num_users, max(ks)], best first; 0 is an empty place."""
        before = 0
        for row, k in enumerate(self.ks):
            self._counts[row] += torch.bincount(items[:, before:k].flatten(), minlength=self._counts.shape[1])
            before = k

    def results(self, train_counts: IntArray, workers: Workers) -> dict[str, float]:
        """`coverage@k`, `novelty@k` and `gini@k` over all workers, which call it together."""
        found: dict[str, float] = {}
        bits = -np.log2((train_counts[1:] + 1) / (train_counts.sum() + len(train_counts) - 1))
        listed = np.zeros(len(train_counts) - 1, dtype=np.int64)
        for k, counts in zip(self.ks, self._counts, strict=True):
            listed += workers.sum(counts.clone()).cpu().numpy()[1:]
            num_listed = int(listed.sum())
            found[f"coverage@{k}"] = np.count_nonzero(listed) / len(listed)
            found[f"novelty@{k}"] = float(listed @ bits) / num_listed if num_listed else 0.0
            found[f"gini@{k}"] = gini(listed)
        return found


def gini(values: IntArray) -> float:
    """The Gini coefficient of whole numbers [num_values], none below 0: 0 when they are equal or all are 0."""
    ascending = np.sort(values)
    total, num_values = int(ascending.sum()), len(ascending)
    if total == 0:
        return 0.0
    # Whole numbers up to here: 10M items and 10^9 listings stay below 2^63.
    weighted = int((np.arange(1, num_values + 1) * ascending).sum())
    return (2 * weighted - (num_values + 1) * total) / (num_values * total)
