"""Whether a change is a change: intervals, thresholds, directions."""

import numpy as np
import pytest

from genrec.reporting.verdicts import (
    ONE_READING,
    WITHIN_NOISE,
    Change,
    Measured,
    beyond_threshold,
    direction_of,
    judged,
    measured,
    percent_change,
    spoken,
    spread_of_lines,
)


def of(*readings: float) -> Measured:
    found = measured(readings)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("before", "after", "direction", "verdict"),
    [
        ((100, 101, 99), (90, 91, 89), "up", "worse"),
        ((100, 101, 99), (90, 91, 89), "down", "better"),
        ((100, 101, 99), (90, 91, 89), "none", "changed"),
        ((100, 101, 99), (96, 97, 96.5), "up", WITHIN_NOISE),  # apart, but under the threshold
        ((100, 120, 85), (80, 90, 84), "up", WITHIN_NOISE),  # 16% less, but the ranges overlap
        ((100, 101, 99), (110, 111, 109), "up", "better"),
        ((100,), (50, 51), "up", ONE_READING),
        ((100, 101), (50,), "up", ONE_READING),
        ((0, 0), (5, 5), "down", "worse"),
        ((-1, -1.1), (-2, -2.1), "up", "worse"),
    ],
)
def test_a_verdict_needs_both(
    before: tuple[float, ...], after: tuple[float, ...], direction: str, verdict: str
) -> None:
    assert judged(of(*before), of(*after), 0.05, direction) == verdict  # type: ignore[arg-type]


def test_the_threshold_is_a_part_of_the_value_before() -> None:
    before, after = of(100, 100), of(93, 93)
    assert [judged(before, after, threshold, "up") for threshold in (0.06, 0.08)] == ["worse", WITHIN_NOISE]
    assert beyond_threshold(Measured(100, 100, 100, 1), Measured(106, 106, 106, 1), 0.05, "down") == "worse"


def test_few_readings_have_their_range_and_many_an_interval_of_the_median() -> None:
    assert of(3, 1, 2) == Measured(2, 1, 3, 3)
    many = [*np.random.default_rng(1).normal(100, 1, 40), 150.0]
    found = of(*many)
    assert found.count == 41
    assert found.value == np.median(many)
    assert 99 < found.low < found.value < found.high < 101
    assert of(*many) == found
    assert measured([]) is None
    assert measured([float("nan")]) is None
    assert of(1, float("nan")).count == 1


def test_lines_of_a_log_have_their_middle_half() -> None:
    assert spread_of_lines(list(range(101))) == Measured(50, 25, 75, 101)
    assert spread_of_lines([]) is None


@pytest.mark.parametrize(
    ("key", "direction", "words"),
    [
        ("events_per_s", "up", "slower"),
        ("events_per_cpu_s", "up", "slower"),
        ("step_s", "down", "slower"),
        ("seconds", "down", "slower"),
        ("peak_bytes", "down", "more memory"),
        ("survived", "none", "slower"),
    ],
)
def test_units_say_where_better_is(key: str, direction: str, words: str) -> None:
    assert direction_of(key) == direction
    assert spoken(key, "worse") == words
    assert spoken(key, WITHIN_NOISE) == WITHIN_NOISE


def test_a_change_is_a_sentence() -> None:
    change = Change("zero2", "events/s", of(100, 102), of(80, 82), lambda value: f"{value:.0f}", "slower", True)
    assert change.sentence == "zero2: events/s 101 -> 81 (-19.8%): slower"
    assert change.intervals == ("100 to 102", "80 to 82")
    status = Change("zero2", "status", "ok", "failed", str, "was ok, now failed", True)
    assert status.sentence == "zero2: status ok -> failed: was ok, now failed"
    assert (percent_change(status), status.intervals) == ("–", ("–", "–"))
