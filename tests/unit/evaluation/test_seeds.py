"""Means over seeds and their intervals."""

import math

import numpy as np
import pytest

from genrec.evaluation.seeds import seed_mean, student_95


def test_the_interval_holds_the_true_mean_nineteen_times_in_twenty() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.3, (4_000, 4))
    held = [found.low <= 1.0 <= found.high for found in map(seed_mean, draws.tolist())]
    assert 0.94 < np.mean(held) < 0.96


def test_one_seed_says_nothing_of_its_noise() -> None:
    found = seed_mean([0.5])
    assert (found.mean, found.low, found.high, found.num_seeds) == (0.5, -math.inf, math.inf, 1)


def test_the_points_fall_towards_the_normal() -> None:
    points = [student_95(degrees) for degrees in range(1, 60)]
    assert points == sorted(points, reverse=True)
    assert points[-1] == pytest.approx(1.96)
    assert student_95(0) == math.inf
