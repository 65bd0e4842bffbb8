"""Measures on codes whose answers are known, and the gate."""

import numpy as np
import pytest
import torch
from rich.console import Console

from genrec.config import HealthConfig
from genrec.errors import DataError
from genrec.reporting.semantic_report import health_page, health_summary
from genrec.semantic.health import Health, Measured, check_health, health_from_json, measure, problems
from genrec.semantic.tokenizers import ItemTokenizer
from genrec.semantic.tokenizers_rows import Rows

SIZES = (2, 4)


def measured(types: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 2, 2)) -> Health:
    """Two groups of four items on a line; in the second, two items have the same codes."""
    tokenizer = ItemTokenizer([2], SIZES).requires_grad_(False)
    tokenizer.books[0].copy_(torch.tensor([[10.0, 0.0], [0.0, 10.0]]))
    tokenizer.books[1].copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    codes = np.array([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 2)], dtype=np.int32)
    vectors = tokenizer.decode(torch.from_numpy(codes.astype(np.int64))).numpy()
    vectors[7] += 0.1
    rows = Rows(vectors, np.arange(8))
    what = Measured(codes, SIZES, rows, np.ones(8, dtype=bool), np.array(types, dtype=np.uint8), tokenizer)
    return measure(what, HealthConfig(num_neighbours=3), seed=1, final_sizes=(2, 4, 2), num_moved=1)


def test_what_is_counted() -> None:
    health = measured()
    assert health.collision_rate == 2 / 8
    assert (health.distinct, health.max_bucket, health.buckets) == (7, 2, {"1": 6, "2": 1})
    first, second = health.levels
    assert (first.used, first.usage, first.entropy_bits, first.evenness) == (2, 1.0, 1.0, 1.0)
    shares = np.array([2, 2, 3, 1]) / 8
    assert second.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())


def test_reconstruction_is_squared_error_over_variance() -> None:
    health = measured()
    assert health.reconstruction is not None
    assert health.reconstruction[1] < 0.001 < health.reconstruction[0] < 1


def test_neighbours_share_codes_more_often_than_others() -> None:
    nearest = measured().neighbours
    assert nearest is not None
    assert nearest.kept == pytest.approx(1.0)
    assert nearest.shared[0] == 1.0
    assert nearest.shared_by_chance[0] == pytest.approx(3 / 7, abs=0.15)


def test_purity_of_types() -> None:
    health = measured()
    assert health.purity == (1.0, 1.0) and health.purity_by_chance == 0.5
    assert measured((1, 2, 1, 2, 1, 2, 1, 2)).purity == (0.5, 7 / 8)  # the two with the same codes differ
    assert measured((1,) * 8).purity is None


def test_health_comes_back_from_json() -> None:
    health = measured()
    assert health_from_json(health.as_json()) == health


@pytest.mark.parametrize(
    ("threshold", "sentence"),
    [
        ({"max_collision_rate": 0.2}, "share of items with another's codes 0.25, at most 0.2 by max_collision_rate"),
        ({"max_bucket": 1}, "items with the same codes 2, at most 1 by max_bucket"),
        ({"min_entropy": 0.99}, "evenness of a level's codes 0.9528, at least 0.99 by min_entropy"),
        ({"max_reconstruction_error": 1e-6}, "by max_reconstruction_error"),
    ],
)
def test_the_gate_names_the_numbers(threshold: dict[str, float], sentence: str) -> None:
    health = measured()
    assert problems(health, HealthConfig()) == []
    with pytest.raises(DataError) as refused:
        check_health(health, HealthConfig(**threshold))
    assert sentence in str(refused.value) and "--accept-unhealthy" in str(refused.value)


def test_the_gate_looks_at_types_where_there_are_some() -> None:
    mixed = measured((1, 2, 1, 2, 1, 2, 1, 2))
    (found,) = problems(mixed, HealthConfig(min_purity=0.6))
    assert found == "share of items with their first code's type 0.5, at least 0.6 by min_purity"
    assert problems(measured(), HealthConfig(min_purity=1.0)) == []
    assert problems(measured((1,) * 8), HealthConfig(min_purity=1.0)) == [], "one type says nothing of the codes"


def test_the_page_and_the_tables_show_the_numbers() -> None:
    health = measured()
    page = health_page(health, "beauty", ("bad",))
    for text in ("beauty", "25%", "genrec tokenize", "Accepted although", "Levels", "Types", "Neighbours"):
        assert text in page
    console = Console(width=100)
    with console.capture() as capture:
        console.print(health_summary(health))
    assert "Collision rate" in capture.get() and "first 2 codes" in capture.get()
