"""From scores to ranks to HR, NDCG and MRR, with one target a user (contract: full ranking, ties count against us).

With the target at rank r (1 is best) and one relevant item, the metrics at cut-off k are

    HR   = 1 if r <= k else 0
    NDCG = 1 / log2(r + 1) if r <= k else 0        (Jarvelin and Kekalainen, 2002; the ideal gain is 1)
    MRR  = 1 / r if r <= k else 0

What is summed over batches and workers are whole numbers, how many users have which rank, so a sum over any number of
workers is the same to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.errors import RunError


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of each row's target, [num_users] int64; 1 is best.

    `scores` [num_users, num_columns] hold -inf where an item must not count; `targets` [num_users] are columns.
    The rank is 1 + the number of other items that score at least as much: a tie counts against the model, so that a
    model that scores everything alike ranks every target last. Raises RunError when a score is not a number.
    """
    target_scores = scores.gather(1, targets.unsqueeze(1))  # [num_users, 1]
    if scores.numel() and bool(scores.amax(dim=1).isnan().any()):  # the largest of a row is NaN when any of it is
        raise RunError(
            "The model scores items as NaN, so ranks mean nothing: training has diverged; lower optimizer.lr or set "
            "optimizer.gradient_clipping, and resume from an earlier checkpoint."
        )
    # Summing bytes is three times as fast as summing booleans: torch sums those as int64.
    at_least = (scores >= target_scores).view(torch.uint8)
    return at_least.sum(dim=1, dtype=torch.int32).long()


@dataclass(frozen=True, slots=True)
class RankSums:
    """How many users have which rank: `histogram` [max_k + 1] int64 counts ranks 1 .. max_k, then all worse ones."""

    histogram: Tensor

    @classmethod
    def zeros(cls, max_k: int, device: torch.device | str = "cpu") -> "RankSums":
        """No users yet, for cut-offs up to `max_k`."""
        return cls(torch.zeros(max_k + 1, dtype=torch.int64, device=device))

    @property
    def max_k(self) -> int:
        """The largest cut-off that these sums know."""
        return self.histogram.shape[0] - 1

    @property
    def num_users(self) -> int:
        """Users counted so far."""
        return int(self.histogram.sum())

    def add(self, ranks: Tensor) -> "RankSums":
        """These users and those of `ranks` [num_users]."""
        places = ranks.clamp(max=self.max_k + 1) - 1
        return RankSums(self.histogram + torch.bincount(places, minlength=self.max_k + 1))

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """`hr@k`, `ndcg@k` and `mrr@k` for every k: means over users, between 0 and 1. Empty sums give no metric."""
        counts, num_users = self._counts(ks)
        return {
            f"{name}@{k}": float((counts[:k] * gains[:k]).sum() / num_users)
            for name, gains in _gains(self.max_k).items()
            for k in ks
        }

    def standard_errors(self, ks: Sequence[int]) -> dict[str, float]:
        """One standard error of each metric over users: differences under two of them are noise."""
        counts, num_users = self._counts(ks)
        errors = {}
        for name, gains in _gains(self.max_k).items():
            for k in ks:
                mean = (counts[:k] * gains[:k]).sum() / num_users
                variance = (counts[:k] * gains[:k] ** 2).sum() / num_users - mean**2
                errors[f"{name}@{k}"] = float(np.sqrt(max(variance, 0.0) / num_users))
        return errors

    def _counts(self, ks: Sequence[int]) -> tuple[npt.NDArray[np.int64], int]:
        if max(ks) > self.max_k:
            raise ValueError(f"cut-offs {list(ks)} reach beyond the {self.max_k} ranks that were counted")
        if self.num_users == 0:
            raise ValueError("no user has been counted, so there is no mean")
        counts: npt.NDArray[np.int64] = self.histogram.cpu().numpy()
        return counts, self.num_users


def metrics_from_ranks(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """`hr@k`, `ndcg@k` and `mrr@k` of `ranks` [num_users] for every k."""
    return RankSums.zeros(max(ks), ranks.device).add(ranks).metrics(ks)


def _gains(max_k: int) -> dict[str, npt.NDArray[np.float64]]:
    """What rank 1 .. max_k is worth under each metric, [max_k]."""
    rank = np.arange(1, max_k + 1, dtype=np.float64)
    return {"hr": np.ones(max_k), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}
