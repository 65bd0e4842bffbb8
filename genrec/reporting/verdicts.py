"""Whether a number has changed, or is only noise: two sets of readings, their intervals, and a threshold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genrec.reporting import formats

Direction = Literal["up", "down", "none"]  # where better is

MIN_RESAMPLED = 8  # readings; the bootstrap of a median of fewer is narrower than the truth
NUM_RESAMPLES = 2_000
SEED = 20_251_125
WITHIN_NOISE = "within noise"
ONE_READING = "one reading, no verdict"


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with the interval that its noise allows; `count` readings, 0 where there is no noise to know."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a difference: a number before and after, or a word, as the status of a case."""

    subject: str
    what: str
    before: Measured | str
    after: Measured | str
    show: Callable[[float], str]
    verdict: str
    is_regression: bool = False

    @property
    def values(self) -> tuple[float | None, float | None]:
        """The numbers before and after; None for a word."""
        before, after = (side.value if isinstance(side, Measured) else None for side in (self.before, self.after))
        return before, after

    @property
    def texts(self) -> tuple[str, str]:
        """What was before and after, with its unit."""
        before, after = (side if isinstance(side, str) else self.show(side.value) for side in (self.before, self.after))
        return before, after

    @property
    def intervals(self) -> tuple[str, str]:
        """The intervals before and after, a dash where the noise is not known."""
        before, after = (
            f"{self.show(side.low)} to {self.show(side.high)}"
            if isinstance(side, Measured) and side.count > 1
            else formats.MISSING
            for side in (self.before, self.after)
        )
        return before, after

    @property
    def relative(self) -> float | None:
        """After / before - 1; None when one of them is missing or zero."""
        before, after = self.values
        return after / before - 1 if before and after is not None else None

    @property
    def sentence(self) -> str:
        """The change on one line."""
        change = "" if self.relative is None else f" ({100 * self.relative:+.1f}%)"
        before, after = self.texts
        return f"{self.subject}: {self.what} {before} -> {after}{change}: {self.verdict}"


def measured(readings: Sequence[float]) -> Measured | None:
    """The median with its interval; None without a reading.

    The interval is from the smallest to the largest reading, and for eight or more the 95% interval of the median by
    the bootstrap (Efron, 1979): the range only grows with more readings, and would in the end hide every change.
    """
    values = np.array([value for value in readings if np.isfinite(value)], dtype=float)
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if len(values) >= MIN_RESAMPLED:
        drawn = np.random.default_rng(SEED).choice(values, size=(NUM_RESAMPLES, len(values)))
        low, high = (float(bound) for bound in np.percentile(np.median(drawn, axis=1), (2.5, 97.5)))
    return Measured(float(np.median(values)), low, high, len(values))


def spread_of_lines(readings: Sequence[float]) -> Measured | None:
    """The median with the middle half of the readings; None without a reading.

    For the log lines of one run: neighbours are alike, so their number says little about how well the median is known.
    """
    values = np.array([value for value in readings if np.isfinite(value)], dtype=float)
    if not len(values):
        return None
    low, high = np.percentile(values, (25, 75))
    return Measured(float(np.median(values)), float(low), float(high), len(values))


def judged(before: Measured, after: Measured, threshold: float, direction: Direction) -> str:
    """What may be said: better, worse or changed, else WITHIN_NOISE or ONE_READING.

    A change counts when the intervals do not overlap and it is over `threshold`, a fraction of the value before.
    """
    if before.count < 2 or after.count < 2:
        return ONE_READING
    return beyond_threshold(before, after, threshold, direction)


def beyond_threshold(before: Measured, after: Measured, threshold: float, direction: Direction) -> str:
    """As `judged`, also for numbers that are read once and hardly vary."""
    overlap = before.low <= after.high and after.low <= before.high
    if overlap or abs(after.value - before.value) <= threshold * abs(before.value):
        return WITHIN_NOISE
    if direction == "none":
        return "changed"
    return "better" if (after.value > before.value) == (direction == "up") else "worse"


def direction_of(key: str) -> Direction:
    """Where better is, by the unit at the end of a reading's name: rates up, times and sizes down."""
    if key.endswith(("_per_s", "_per_cpu_s")) or key == "mfu":
        return "up"
    return "down" if key.endswith(("_s", "_bytes", "_gib")) or key in ("seconds", "step_s") else "none"


def spoken(key: str, verdict: str) -> str:
    """The verdict in the words of what was read: slower, more memory."""
    if verdict not in ("better", "worse"):
        return verdict
    if key.endswith(("_bytes", "_gib")):
        return "less memory" if verdict == "better" else "more memory"
    return "faster" if verdict == "better" else "slower"


def percent_change(change: Change) -> str:
    """The relative change with its sign; a dash where there is none."""
    return formats.MISSING if change.relative is None else f"{100 * change.relative:+.1f}%"
