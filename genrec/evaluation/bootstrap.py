"""How much of a number, or of a difference of two, is noise: the bootstrap over users (Efron, 1979). numpy only.

Drawing n users with replacement is drawing how often each *kind* of user comes, a multinomial; users of one kind have
the same values. A kind is a place in the counts of rank_counts.py, or a pair of them where two runs are compared on the
same users. So a resample costs as much as there are kinds, not users, and is still the exact bootstrap.

An interval holds the noise of *which users happened to be tested*. It does not hold the noise of the training seed. A
few users say little about others, and drawing them again would hide that: see `MIN_USERS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.evaluation.rank_counts import Counts, Floats, metric_names, num_counted, places_of, values_by_place

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95
SEED = 20_240_601
MIN_USERS = 10
"""Of fewer users the interval is all that a metric can be. Users of a known world gave 95% intervals that held the true
ndcg@10 in 40 to 46 of 100 draws of 2 users, 81 to 85 of 5, 86 to 91 of 10 and 92 to 94 of 20.
"""
MAX_DRAWN = 2**22  # counts drawn at a time: 32 MiB

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of a run less that of another over the same users, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0:
            return "better beyond noise"
        if self.high < 0:
            return "worse beyond noise"
        return "within noise"


def intervals(counts: Counts, ks: Sequence[int]) -> dict[str, Interval]:
    """The 95% interval of every metric; `counts` as in rank_counts.py. Same counts, same interval."""
    if num_counted(counts, ks) < MIN_USERS:
        return dict.fromkeys(metric_names(ks), (0.0, 1.0))
    resampled = _resampled_means(counts, values_by_place(len(counts) - 1, ks))
    return dict(zip(metric_names(ks), _percentiles(resampled), strict=True))


def paired_differences(
    ranks: npt.NDArray[np.integer], base: npt.NDArray[np.integer], ks: Sequence[int]
) -> dict[str, Difference]:
    """Every metric of `ranks` less that of `base`, both [num_users] of the same users in the same order.

    Users are drawn with both of their ranks, so what makes a user easy for both runs cancels: the interval is far
    narrower than those of the two runs. Raises ValueError when there is no user.
    """
    if len(ranks) != len(base) or len(ranks) == 0:
        raise ValueError(f"a paired comparison needs the same users, at least one: {len(ranks)} and {len(base)}")
    max_k = max(ks)
    cells, counts = np.unique(places_of(ranks, max_k) * (max_k + 1) + places_of(base, max_k), return_counts=True)
    values = values_by_place(max_k, ks)
    differences = values[cells // (max_k + 1)] - values[cells % (max_k + 1)]  # [num_cells, num_metrics]
    means = counts @ differences / len(ranks)
    is_few = len(ranks) < MIN_USERS
    bounds = [(-1.0, 1.0)] * len(means) if is_few else _percentiles(_resampled_means(counts, differences))
    found = zip(metric_names(ks), means.tolist(), bounds, strict=True)
    return {name: Difference(mean, low, high) for name, mean, (low, high) in found}


def _resampled_means(counts: Counts, values: Floats) -> Floats:
    """Means [num_resamples, num_metrics] of `values` [num_kinds, num_metrics]; `counts` [num_kinds] are users."""
    present = counts > 0
    counts, values = counts[present], values[present]
    num_users = int(counts.sum())
    generator = np.random.default_rng(SEED)
    at_a_time = max(1, MAX_DRAWN // len(counts))
    means = np.empty((NUM_RESAMPLES, values.shape[1]))
    for first in range(0, NUM_RESAMPLES, at_a_time):
        size = min(at_a_time, NUM_RESAMPLES - first)
        means[first : first + size] = generator.multinomial(num_users, counts / num_users, size=size) @ values
    return means / num_users


def _percentiles(resampled: Floats) -> list[Interval]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
