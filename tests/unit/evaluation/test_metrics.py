"""Ranks and metrics against a transcription of their definitions."""

import math

import pytest
import torch
from torch import Tensor

from genrec.errors import RunError
from genrec.evaluation.metrics import RankSums, metrics_from_ranks, ranks_of

KS = (1, 3, 10)


def scores_with_ties(num_users: int = 40, num_items: int = 25) -> tuple[Tensor, Tensor]:
    """Whole-number scores, so that many of them tie, and a target for each row."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(-4, 5, (num_users, num_items), generator=generator).float()
    return scores, torch.randint(0, num_items, (num_users,), generator=generator)


def rank_by_definition(row: list[float], target: int) -> int:
    return 1 + sum(score >= row[target] for item, score in enumerate(row) if item != target)


def test_ranks_are_those_of_the_definition() -> None:
    scores, targets = scores_with_ties()
    expected = [rank_by_definition(row, t) for row, t in zip(scores.tolist(), targets.tolist(), strict=True)]
    assert ranks_of(scores, targets).tolist() == expected


def test_a_model_that_scores_everything_alike_ranks_every_target_last() -> None:
    assert ranks_of(torch.zeros(3, 7), torch.tensor([0, 3, 6])).tolist() == [7, 7, 7]


def test_filtered_items_do_not_count() -> None:
    scores = torch.tensor([[-math.inf, 2.0, 1.0, -math.inf, 3.0]])
    assert ranks_of(scores, torch.tensor([2])).tolist() == [3]


@pytest.mark.parametrize("column", [0, 2])
def test_nan_is_an_error_and_not_a_good_rank(column: int) -> None:
    scores = torch.zeros(2, 4)
    scores[1, column] = math.nan
    with pytest.raises(RunError, match="diverged"):
        ranks_of(scores, torch.tensor([2, 2]))


def test_metrics_are_those_of_the_definition() -> None:
    ranks = [1, 2, 3, 4, 9, 10, 11, 700, 1, 3]
    metrics = metrics_from_ranks(torch.tensor(ranks), KS)
    assert sorted(metrics) == sorted(f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in KS)
    for k in KS:
        found = [rank for rank in ranks if rank <= k]
        assert metrics[f"hr@{k}"] == pytest.approx(len(found) / len(ranks), rel=1e-12)
        assert metrics[f"ndcg@{k}"] == pytest.approx(sum(1 / math.log2(r + 1) for r in found) / len(ranks), rel=1e-12)
        assert metrics[f"mrr@{k}"] == pytest.approx(sum(1 / r for r in found) / len(ranks), rel=1e-12)


def test_standard_errors_are_those_of_a_sample_mean() -> None:
    ranks = torch.tensor([1, 2, 3, 40, 9, 10, 11, 700])
    errors = RankSums.zeros(10).add(ranks).standard_errors([10])
    gains = torch.where(ranks <= 10, 1 / torch.log2(ranks.double() + 1), 0.0)
    hits = (ranks <= 10).double()
    assert errors["ndcg@10"] == pytest.approx(float(gains.std(correction=0)) / math.sqrt(8), rel=1e-12)
    assert errors["hr@10"] == pytest.approx(float((hits.mean() * (1 - hits.mean()) / 8).sqrt()), rel=1e-12)


def test_any_way_of_summing_gives_the_same_numbers_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    ranks = torch.randint(1, 30, (1_001,), generator=generator)
    whole = RankSums.zeros(10).add(ranks)
    left, right = RankSums.zeros(10), RankSums.zeros(10)
    for place, part in enumerate(ranks.split(97)):
        left, right = (left.add(part), right) if place % 3 else (left, right.add(part))
    summed = RankSums(left.histogram + right.histogram)
    assert summed.num_users == 1_001
    assert summed.metrics(KS) == whole.metrics(KS)
    assert summed.standard_errors(KS) == whole.standard_errors(KS)


def test_no_users_and_too_large_cut_offs_give_no_number() -> None:
    with pytest.raises(ValueError, match="no user"):
        RankSums.zeros(10).metrics(KS)
    with pytest.raises(ValueError, match="beyond"):
        RankSums.zeros(5).add(torch.tensor([1])).metrics(KS)
