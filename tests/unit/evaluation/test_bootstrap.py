"""Intervals and paired differences against the bootstrap that draws users one by one, and against simulated noise."""

import numpy as np
import pytest

from genrec.evaluation.bootstrap import Difference, intervals, paired_differences
from genrec.evaluation.rank_counts import metric_names, metric_values, places_of, standard_errors, values_by_place

KS = (1, 10)
MAX_K = 10


def some_ranks(num_users: int, seed: int, scale: float = 30.0) -> np.ndarray:
    return 1 + np.random.default_rng(seed).exponential(scale, num_users).astype(np.int64)


def counts_of(ranks: np.ndarray) -> np.ndarray:
    return np.bincount(places_of(ranks, MAX_K), minlength=MAX_K + 1)


def by_users(per_user: np.ndarray, seed: int, num_resamples: int = 3_000) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap by its definition; `per_user` [num_users, num_metrics]."""
    rng = np.random.default_rng(seed)
    num_users = len(per_user)
    means = [per_user[rng.integers(0, num_users, num_users)].mean(axis=0) for _ in range(num_resamples)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def test_intervals_are_those_of_drawing_users_one_by_one() -> None:
    ranks = some_ranks(700, 1)
    low, high = by_users(values_by_place(MAX_K, KS)[places_of(ranks, MAX_K)], seed=2)
    found, errors = intervals(counts_of(ranks), KS), standard_errors(counts_of(ranks), KS)
    for column, name in enumerate(metric_names(KS)):
        # The ends of two bootstraps differ by Monte-Carlo noise: under a fifth of a standard error, and one user.
        assert found[name] == pytest.approx((low[column], high[column]), abs=0.2 * errors[name] + 1 / 700)


def test_values_by_place_are_those_of_the_metrics() -> None:
    ranks = some_ranks(500, 3)
    per_user = values_by_place(MAX_K, KS)[places_of(ranks, MAX_K)]
    assert dict(zip(metric_names(KS), per_user.mean(axis=0), strict=True)) == pytest.approx(
        metric_values(counts_of(ranks), KS), rel=1e-12
    )


def test_the_same_counts_have_the_same_interval() -> None:
    counts = counts_of(some_ranks(300, 4))
    assert intervals(counts, KS) == intervals(counts.copy(), KS)


def test_95_of_100_intervals_hold_the_truth() -> None:
    """Users drawn from a known world: the true hit rate is known, and so often should it lie inside."""
    truth = 1 - np.exp(-10 / 30)
    inside = 0
    for seed in range(300):
        low, high = intervals(counts_of(some_ranks(400, 1_000 + seed)), [10])["hr@10"]
        inside += low <= truth <= high
    assert 0.91 <= inside / 300 <= 0.98


def test_paired_differences_are_those_of_drawing_users_with_both_ranks() -> None:
    base = some_ranks(600, 5)
    ranks = np.maximum(1, base - np.random.default_rng(6).integers(-2, 4, 600))
    table = values_by_place(MAX_K, KS)
    per_user = table[places_of(ranks, MAX_K)] - table[places_of(base, MAX_K)]
    low, high = by_users(per_user, seed=7)
    found = paired_differences(ranks, base, KS)
    for column, name in enumerate(metric_names(KS)):
        spread = per_user[:, column].std() / np.sqrt(600)
        assert found[name].value == pytest.approx(per_user[:, column].mean(), abs=1e-12)
        assert (found[name].low, found[name].high) == pytest.approx(
            (low[column], high[column]), abs=0.2 * spread + 1 / 600
        )


def test_a_small_gain_shows_in_pairs_that_is_lost_between_two_intervals() -> None:
    base = some_ranks(2_000, 8)
    ranks = np.where(np.random.default_rng(9).random(2_000) < 0.1, np.maximum(1, base - 5), base)
    first, second = (intervals(counts_of(run), [10])["hr@10"] for run in (base, ranks))
    assert first[1] > second[0], "the two intervals overlap"
    assert paired_differences(ranks, base, [10])["hr@10"].verdict == "better beyond noise"
    assert paired_differences(base, ranks, [10])["hr@10"].verdict == "worse beyond noise"


def test_runs_that_differ_by_chance_alone_are_within_noise() -> None:
    """Two runs of one world, as two seeds that have learnt equally: about 95 of 100 verdicts say so."""
    verdicts = [
        paired_differences(some_ranks(400, 2 * seed), some_ranks(400, 2 * seed + 1), [10])["ndcg@10"].verdict
        for seed in range(150)
    ]
    assert 0.90 <= verdicts.count("within noise") / 150 <= 0.99


def test_a_run_against_itself_differs_by_nothing() -> None:
    ranks = some_ranks(50, 1)
    assert paired_differences(ranks, ranks, [10])["hr@10"] == Difference(0.0, 0.0, 0.0)
    assert paired_differences(ranks, ranks, [10])["hr@10"].verdict == "within noise"


def test_many_kinds_of_users_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    base, ranks = some_ranks(400, 10, 300), some_ranks(400, 11, 300)
    whole = paired_differences(ranks, base, [1_000])
    monkeypatch.setattr("genrec.evaluation.bootstrap.MAX_DRAWN", 10_000)
    parts = paired_differences(ranks, base, [1_000])
    for name, found in whole.items():  # the order in which BLAS sums depends on how many rows there are
        assert (parts[name].value, parts[name].low, parts[name].high) == pytest.approx(
            (found.value, found.low, found.high), abs=1e-12
        )


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        paired_differences(some_ranks(3, 1), some_ranks(4, 1), KS)
    with pytest.raises(ValueError, match="no user"):
        intervals(np.zeros(11, dtype=np.int64), KS)


@pytest.mark.parametrize("num_users", [1, 5, 9])
def test_a_few_users_say_nothing_about_others(num_users: int) -> None:
    ranks, base = np.full(num_users, 2), np.full(num_users, 9)
    assert intervals(counts_of(ranks), [1, 5]) == dict.fromkeys(metric_names([1, 5]), (0.0, 1.0))
    found = paired_differences(ranks, base, [5])["hr@5"]
    assert (found.value, found.low, found.high, found.verdict) == (1.0, -1.0, 1.0, "within noise")


def test_ten_users_have_an_interval() -> None:
    low, high = intervals(counts_of(some_ranks(10, 12)), [10])["ndcg@10"]
    assert 0 <= low < high < 0.5
