"""From how many users have which rank to metrics and their noise. numpy only, so that reports can use it.

`counts` [max_k + 1] int64 holds the users with rank 1 .. max_k, then those with all worse ranks. A user's value at
cut-off k depends on nothing but the rank (see metrics.py), so these counts say everything about a mean over users, and
resampling users is resampling counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FAMILIES = ("hr", "ndcg", "mrr")


def gains(max_k: int) -> dict[str, Floats]:
    """What rank 1 .. max_k is worth under each metric, [max_k]."""
    rank = np.arange(1, max_k + 1, dtype=np.float64)
    return {"hr": np.ones(max_k), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}


def metric_names(ks: Sequence[int]) -> list[str]:
    """`hr@k`, `ndcg@k` and `mrr@k` for every k, in the order in which everything here gives them."""
    return [f"{family}@{k}" for family in FAMILIES for k in ks]


def places_of(ranks: npt.NDArray[np.integer], max_k: int) -> Counts:
    """The place of each rank in `counts`, [num_users]: 0 for rank 1, max_k for every rank beyond max_k."""
    places: Counts = np.minimum(ranks, max_k + 1).astype(np.int64) - 1
    return places


def metric_values(counts: Counts, ks: Sequence[int]) -> dict[str, float]:
    """The mean of every metric over the users, between 0 and 1. Raises ValueError when there is no user."""
    num_users = num_counted(counts, ks)
    worth = gains(len(counts) - 1)
    return {
        f"{family}@{k}": float((counts[:k] * worth[family][:k]).sum() / num_users) for family in FAMILIES for k in ks
    }


def standard_errors(counts: Counts, ks: Sequence[int]) -> dict[str, float]:
    """One standard error of each metric over users."""
    num_users = num_counted(counts, ks)
    errors = {}
    for family, worth in gains(len(counts) - 1).items():
        for k in ks:
            mean = (counts[:k] * worth[:k]).sum() / num_users
            variance = (counts[:k] * worth[:k] ** 2).sum() / num_users - mean**2
            errors[f"{family}@{k}"] = float(np.sqrt(max(variance, 0.0) / num_users))
    return errors


def num_counted(counts: Counts, ks: Sequence[int]) -> int:
    """Users in `counts`; raises ValueError when there is none or a cut-off lies beyond what was counted."""
    max_k = len(counts) - 1
    if max(ks) > max_k:
        raise ValueError(f"cut-offs {list(ks)} reach beyond the {max_k} ranks that were counted")
    num_users = int(counts.sum())
    if num_users == 0:
        raise ValueError("no user has been counted, so there is no mean")
    return num_users


def values_by_place(max_k: int, ks: Sequence[int]) -> Floats:
    """A user's value of every metric by place in `counts`, [max_k + 1, num_metrics], as `metric_names` orders them."""
    table = np.zeros((max_k + 1, len(FAMILIES) * len(ks)))
    worth = gains(max_k)
    for column, name in enumerate(metric_names(ks)):
        family, _, k = name.partition("@")
        table[: int(k), column] = worth[family][: int(k)]
    return table
