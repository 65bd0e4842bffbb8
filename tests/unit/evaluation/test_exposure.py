"""Coverage, novelty and Gini against their definitions, alone and shared."""

import math

import numpy as np
import pytest
import torch
from together import together

from genrec.evaluation.exposure import Exposure, gini
from genrec.evaluation.workers import ALONE, Workers

NUM_ITEMS = 40
CPU = torch.device("cpu")


def some_lists(num_users: int) -> torch.Tensor:
    """Lists of 5 different items, popular ones more often; some places are empty."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, NUM_ITEMS + 1)
    lists = [rng.choice(NUM_ITEMS, 5, replace=False, p=weights / weights.sum()) + 1 for _ in range(num_users)]
    lists[0][3:] = 0
    return torch.from_numpy(np.array(lists))


def results(lists: torch.Tensor, train_counts: np.ndarray, workers: Workers = ALONE) -> dict[str, float]:
    exposure = Exposure(NUM_ITEMS, (5, 2), CPU)
    for part in lists.split(7):
        exposure.add(part)
    return exposure.results(train_counts, workers)


def test_numbers_are_those_of_the_definitions() -> None:
    train_counts = np.concatenate([[0], np.random.default_rng(2).integers(0, 50, NUM_ITEMS)])
    lists = some_lists(60)
    found = results(lists, train_counts)
    for k in (2, 5):
        listed = [item for row in lists[:, :k].tolist() for item in row if item]
        total = train_counts.sum() + NUM_ITEMS
        surprise = [-math.log2((train_counts[item] + 1) / total) for item in listed]
        often = [listed.count(item) for item in range(1, NUM_ITEMS + 1)]
        between = sum(abs(a - b) for a in often for b in often)  # Gini, 1912: mean absolute difference / (2 mean)
        assert found[f"coverage@{k}"] == len(set(listed)) / NUM_ITEMS
        assert found[f"novelty@{k}"] == pytest.approx(sum(surprise) / len(surprise), rel=1e-12)
        assert found[f"gini@{k}"] == pytest.approx(between / (2 * NUM_ITEMS * sum(often)), rel=1e-12)


def test_any_number_of_workers_gives_the_same_to_the_last_bit() -> None:
    train_counts = np.arange(NUM_ITEMS + 1)
    lists = some_lists(61)
    alone = results(lists, train_counts)
    parts = [lists[:10], lists[10:10], lists[10:]]
    shared = together(
        lambda rank, all_reduce: results(parts[rank], train_counts, Workers(rank, 3, all_reduce)), workers=3
    )
    assert shared == [alone] * 3


def test_gini_is_0_for_equal_shares_and_near_1_for_one_item() -> None:
    assert gini(np.full(10, 7)) == 0
    assert gini(np.zeros(10, dtype=np.int64)) == 0
    assert gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)
