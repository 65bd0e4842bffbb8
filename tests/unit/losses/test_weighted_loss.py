"""Weights of targets: a target of weight 2 is one that is there twice, one of weight 0 is none."""

from collections.abc import Callable

import pytest
import torch
from loss_problems import NUM_ITEMS, NUM_TARGETS, assert_near, gradients, problem, sampled_softmax
from torch import Tensor

from genrec.losses.binary import BinaryCrossEntropy
from genrec.losses.full import FullSoftmax
from genrec.losses.negatives import Negatives, NegativeSampler
from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable

Value = Callable[[Tensor, Tensor, ItemTable, Tensor | None, Tensor], Tensor]

KINDS = ["full", "full-tiles", "softmax-shared", "softmax-own", "gbce-shared", "gbce-own"]


def binary(*, per_position: bool) -> BinaryCrossEntropy:
    sampler = NegativeSampler(num_uniform=8)
    return BinaryCrossEntropy(Temperature(0.7), sampler, 2**10, calibration=0.5, per_position=per_position)


def value_of(kind: str) -> Value:
    """Loss of (hidden, targets, table, weights, rows), where `rows` says which negatives each target has."""
    torch.manual_seed(3)
    shared = torch.randint(1, NUM_ITEMS + 1, (20,)).sort().values
    own, log_weights = torch.randint(1, NUM_ITEMS + 1, (NUM_TARGETS, 20)), torch.randn(NUM_TARGETS, 20)

    def full(hidden: Tensor, targets: Tensor, table: ItemTable, weights: Tensor | None, rows: Tensor) -> Tensor:
        max_logits_bytes = 8 * (50 if kind == "full-tiles" else 20 * NUM_ITEMS)
        result: Tensor = FullSoftmax(Temperature(0.7), max_logits_bytes)(hidden, targets, table, None, weights)
        return result

    def sampled(hidden: Tensor, targets: Tensor, table: ItemTable, weights: Tensor | None, rows: Tensor) -> Tensor:
        per_position = kind.endswith("own")
        softmax = sampled_softmax(0.7, 2**10, per_position=per_position)
        loss = softmax if kind.startswith("softmax") else binary(per_position=per_position)
        negatives = Negatives(own[rows], log_weights[rows]) if per_position else Negatives(shared, log_weights[0])
        return loss.with_negatives(hidden, targets, negatives, table, weights)

    return full if kind.startswith("full") else sampled


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_number_repeats_the_target(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp64 within 1e-11 of the largest value, gradients too; over several chunks of rows, and tiles of items."""
    monkeypatch.setattr("genrec.losses.full.MIN_CHUNK_ROWS", 15)
    hidden, targets, table = problem(torch.float64)
    counts = torch.randint(0, 4, (NUM_TARGETS,))
    assert set(counts.tolist()) == {0, 1, 2, 3}
    loss_of, rows = value_of(kind), torch.arange(NUM_TARGETS)
    weighted = loss_of(hidden, targets, table, counts.float(), rows)
    again = rows.repeat_interleave(counts)
    repeated = loss_of(hidden[again], targets[again], table, None, again)
    assert_near(
        (weighted, *gradients(weighted, hidden, table)),
        (repeated, *gradients(repeated, hidden, table)),
        torch.float64,
    )
    with torch.no_grad():
        assert_near((loss_of(hidden, targets, table, counts.float(), rows),), (repeated,), torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_a_factor(kind: str) -> None:
    hidden, targets, table = problem(torch.float64)
    weights, rows = torch.rand(NUM_TARGETS) * 3, torch.arange(NUM_TARGETS)
    loss_of = value_of(kind)
    each = [loss_of(hidden[i : i + 1], targets[i : i + 1], table, None, rows[i : i + 1]) for i in range(NUM_TARGETS)]
    expected = (torch.stack(each) * weights.double()).sum()
    value = loss_of(hidden, targets, table, weights, rows)
    assert_near(
        (value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), hidden.dtype
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ones_change_no_bit(kind: str) -> None:
    hidden, targets, table = problem(torch.float32)
    loss_of, rows = value_of(kind), torch.arange(NUM_TARGETS)
    results = [loss_of(hidden, targets, table, w, rows) for w in (None, torch.ones(NUM_TARGETS))]
    assert results[0].item() == results[1].item()
    plain, weighted = (gradients(result, hidden, table) for result in results)
    assert all(torch.equal(a, b) for a, b in zip(plain, weighted, strict=True))
