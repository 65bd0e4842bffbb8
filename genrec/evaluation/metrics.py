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

import torch
from torch import Tensor

from genrec.errors import RunError
from genrec.evaluation.rank_counts import Counts, metric_values, standard_errors

LANES = 128  # bytes that are added up in a byte


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
    return count_true(scores >= target_scores).long()


def count_true(mask: Tensor) -> Tensor:
    """How many of each row are true, [num_rows] int32; `mask` [num_rows, num_columns].

    torch adds up the booleans of a row one by one. Added to each other as bytes, a vector register full at a time, it
    takes a fiftieth of the time.
    """
    as_bytes = mask.view(torch.uint8)
    width = mask.shape[1] // LANES
    sums = as_bytes[:, : LANES * width].view(len(mask), LANES, width).sum(dim=1, dtype=torch.uint8)
    rest = as_bytes[:, LANES * width :]
    return sums.sum(dim=1, dtype=torch.int32) + rest.sum(dim=1, dtype=torch.int32)


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
        return metric_values(self.counts, ks)

    def standard_errors(self, ks: Sequence[int]) -> dict[str, float]:
        """One standard error of each metric over users: differences under two of them are noise."""
        return standard_errors(self.counts, ks)

    @property
    def counts(self) -> Counts:
        """The histogram in numpy, as rank_counts.py takes it."""
        counts: Counts = self.histogram.cpu().numpy()
        return counts


def metrics_from_ranks(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """`hr@k`, `ndcg@k` and `mrr@k` of `ranks` [num_users] for every k."""
    return RankSums.zeros(max(ks), ranks.device).add(ranks).metrics(ks)
