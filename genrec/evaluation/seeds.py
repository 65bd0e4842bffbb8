"""The mean of a few runs that differ in their seed, with the interval that so few allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Two-sided 95% points of Student's t with 1, 2, ... degrees of freedom; NIST/SEMATECH e-Handbook, 1.3.6.7.2.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL_95 = 1.960


@dataclass(frozen=True, slots=True)
class SeedMean:
    """A mean over seeds; `low` and `high` are its 95% interval, infinite with a single seed."""

    mean: float
    low: float
    high: float
    num_seeds: int


def student_95(degrees: int) -> float:
    """The two-sided 95% point of Student's t; infinite without a degree of freedom."""
    if degrees < 1:
        return math.inf
    return _T_95[degrees - 1] if degrees <= len(_T_95) else _NORMAL_95


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Mean and 95% interval of one number of several seeds; raises ValueError without any."""
    mean = fmean(values)
    if len(values) < 2:
        return SeedMean(mean, -math.inf, math.inf, len(values))
    half = student_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return SeedMean(mean, mean - half, mean + half, len(values))
