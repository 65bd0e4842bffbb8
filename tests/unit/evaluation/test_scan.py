"""Counts and best items of a chunk, against counting and sorting all of it."""

import pytest
import torch
from torch import Tensor

from genrec.evaluation.metrics import count_true
from genrec.evaluation.scan import best_keys, block_maxima
from genrec.semantic.order import is_something, numbers_of, order_keys

NUM_ROWS, FIRST, K = 50, 70, 9
INFINITY = float("inf")


@pytest.mark.parametrize("num_columns", [0, 1, 127, 128, 129, 1_000, 40_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_counts_are_exact(num_columns: int, share: float) -> None:
    """Also where every one is true: a byte holds what is added up in it."""
    mask = torch.rand(7, num_columns, generator=torch.Generator().manual_seed(0)) < share
    assert count_true(mask).tolist() == [sum(row) for row in mask.tolist()]
    assert count_true(mask[:, num_columns // 3 :]).tolist() == [sum(row[num_columns // 3 :]) for row in mask.tolist()]


def drawn_scores(different: int, num_columns: int) -> Tensor:
    """Scores of which at most `different` differ; every seventh row has 5 that count."""
    drawn = torch.randint(0, different, (NUM_ROWS, num_columns), generator=torch.Generator().manual_seed(different))
    scores = drawn.float()
    scores[::7, : num_columns - 5] = -INFINITY
    return scores


def items_of(keys: Tensor, at_least: Tensor) -> list[list[int]]:
    """The items of each row that score as much as `at_least`, best first."""
    bars = order_keys(at_least, torch.full_like(at_least, 2**31 - 1).long()).tolist()
    wanted = is_something(keys)
    rows = zip(keys.tolist(), numbers_of(keys).tolist(), wanted.tolist(), bars, strict=True)
    return [
        [number for key, number, good in zip(row, numbers, goods, strict=True) if good and key >= bar]
        for row, numbers, goods, bar in rows
    ]


@pytest.mark.parametrize("different", [10**9, 2_000, 300, 3, 1])
@pytest.mark.parametrize("num_columns", [5, 200, 1_000, 1_024, 3_001])
@pytest.mark.parametrize("bar", [None, 0.0, 0.99, 2.0])
def test_the_best_are_those_of_sorting_everything(different: int, num_columns: int, bar: float | None) -> None:
    """With few different scores equal ones stand in more blocks than are wanted, and the least index counts."""
    scores = drawn_scores(different, num_columns)
    least = torch.full((NUM_ROWS,), -INFINITY if bar is None else bar * different)
    least[0] = -INFINITY
    every = order_keys(scores, torch.arange(num_columns).expand(NUM_ROWS, -1) + FIRST)
    found = best_keys(scores, block_maxima(scores), FIRST, K, least)
    expected = every.sort(dim=1, descending=True).values[:, :K]
    assert items_of(found, least) == items_of(expected, least)


def test_a_block_with_a_score_that_is_no_number_says_so() -> None:
    scores = torch.zeros(2, 64)
    scores[1, 37] = float("nan")
    assert block_maxima(scores).isnan().tolist() == [[False] * 4, [False, True, False, False]]
