"""Softmax over sampled negatives: equal to brute force, shared or one set for each target; masking; memory."""

import pytest
import torch
from loss_problems import (
    DIM,
    NUM_ITEMS,
    NUM_TARGETS,
    TOLERANCE,
    assert_near,
    gradients,
    peak_bytes,
    problem,
    sampled_softmax,
    vectors,
)
from torch import Tensor

from genrec.losses.contrast import _own_target
from genrec.losses.negatives import Negatives
from genrec.models.item_table import ItemTable


def brute_force(
    hidden: Tensor, targets: Tensor, ids: Tensor, table: ItemTable, log_weights: Tensor | None = None
) -> Tensor:
    """Row by row; `ids` [n, k], at temperature 0.7."""
    rows, items = vectors(hidden, table)
    total = rows.new_zeros(())
    for number, target in enumerate(targets.tolist()):
        scores = items[ids[number]] @ rows[number] / 0.7
        if log_weights is not None:
            scores = scores + log_weights[number].to(scores.dtype)
        own = (items[target] @ rows[number] / 0.7).unsqueeze(0)
        total = total - torch.cat([own, scores[ids[number] != target]]).log_softmax(0)[0]
    return total


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("max_logits", [1_000_000, 64 * 7, 64], ids=lambda n: f"{n} logits")
@pytest.mark.parametrize("weighted", [False, True])
def test_shared_negatives_equal_brute_force(
    dtype: torch.dtype, l2_normalize: bool, max_logits: int, weighted: bool
) -> None:
    hidden, targets, table = problem(dtype, l2_normalize)
    targets[:10] = 7
    hits = torch.tensor([7, 7, 299])  # one of them twice
    negatives = torch.cat([torch.randint(1, NUM_ITEMS + 1, (61,)), hits]).sort().values
    log_weights = torch.randn(64, dtype=torch.float64) if weighted else None
    expected = brute_force(
        hidden,
        targets,
        negatives.expand(NUM_TARGETS, -1),
        table,
        None if log_weights is None else log_weights.expand(NUM_TARGETS, -1),
    )
    element_size = 8 if dtype == torch.float64 else 4
    loss = sampled_softmax(0.7, max_logits * element_size)
    value = loss.with_negatives(hidden, targets, Negatives(negatives, log_weights), table)
    assert_near((value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("max_logits", [1_000_000, 13 * 8 * 20, 1], ids=lambda n: f"{n} logits")
@pytest.mark.parametrize("weighted", [False, True])
def test_own_negatives_equal_brute_force(
    dtype: torch.dtype, l2_normalize: bool, max_logits: int, weighted: bool
) -> None:
    hidden, targets, table = problem(dtype, l2_normalize)
    ids = torch.randint(1, NUM_ITEMS + 1, (NUM_TARGETS, 13))
    ids[:, 5] = targets  # each row has a hit
    ids[3] = targets[3]  # and one has nothing else
    log_weights = torch.randn(ids.shape, dtype=torch.float64) if weighted else None
    expected = brute_force(hidden, targets, ids, table, log_weights)
    element_size = 8 if dtype == torch.float64 else 4
    loss = sampled_softmax(0.7, max_logits * element_size, per_position=True)
    value = loss.with_negatives(hidden, targets, Negatives(ids, log_weights), table)
    assert_near((value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)


def test_own_negatives_do_not_depend_on_the_chunks() -> None:
    hidden, targets, table = problem(torch.float64)
    values = []
    for max_logits_bytes in (2**20, 2**12):
        torch.manual_seed(3)
        values.append(sampled_softmax(1.0, max_logits_bytes, per_position=True)(hidden, targets, table))
    torch.testing.assert_close(values[0], values[1], atol=0, rtol=1e-12)


@pytest.mark.parametrize("per_position", [False, True])
def test_gradients_by_finite_differences(per_position: bool) -> None:
    torch.manual_seed(0)
    table = ItemTable(8, 3, std=0.8, l2_normalize=True).double()
    hidden, targets = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([1, 8, 3, 3])
    ids = torch.tensor([1, 2, 3, 5]).expand((4, -1) if per_position else (-1,))
    negatives = Negatives(ids, torch.randn(ids.shape, dtype=torch.float64))
    loss = sampled_softmax(0.7, 2**8, per_position=per_position)

    def value(rows: Tensor, weight: Tensor) -> Tensor:
        return loss.with_negatives(rows, targets, negatives, table)

    assert torch.autograd.gradcheck(value, (hidden, table.weight), atol=1e-6)


def test_a_false_negative_pushes_nothing_away() -> None:
    hidden, _, table = problem(torch.float64)
    targets = torch.full((NUM_TARGETS,), 5)
    value = sampled_softmax().with_negatives(hidden, targets, Negatives(torch.tensor([5, 5]), None), table)
    assert value.item() == 0.0  # nothing is left to tell the target from
    assert all(x.abs().max() == 0 for x in gradients(value, hidden, table))


@pytest.mark.parametrize("per_position", [False, True])
def test_scores_stay_within_their_bytes(per_position: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.losses.contrast.CPU_CACHE_LOGITS", 2**30)
    num_targets, num_items, num_negatives, budget = 4_000, 3_000, 1_000, 2**22
    table = ItemTable(num_items, 4)
    hidden = torch.randn(num_targets, 4, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_targets,))
    shape = (num_targets, num_negatives) if per_position else (num_negatives,)
    negatives = Negatives(torch.randint(1, num_items + 1, shape).sort().values, None)
    loss = sampled_softmax(1.0, budget, per_position=per_position)
    peak = peak_bytes(lambda: loss.with_negatives(hidden, targets, negatives, table).backward())
    assert 0.9 * budget <= peak <= 1.2 * budget


def test_a_pool_of_16384_targets_of_the_step_fits() -> None:
    """In-batch negatives with logQ over a large catalogue: the plain formula within 1e-5, in chunks of 128 rows."""
    torch.manual_seed(0)
    num_items, num_pool, num_rows, dim, budget = 40_000, 16_384, 600, 8, 2**23
    table = ItemTable(num_items, dim, std=0.5)
    table.train_counts = torch.cat([torch.zeros(1), torch.randint(1, 50, (num_items,))]).long()
    hidden = torch.randn(num_rows, dim, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_rows,))
    pool = torch.cat([targets, torch.multinomial(table.train_counts.double(), num_pool - num_rows)])
    loss = sampled_softmax(1.0, budget, num_in_batch=num_pool, corrected=True)
    expected_count = num_pool * table.train_counts.double() / table.train_counts.sum()
    scores = hidden @ table.weight[pool].T - expected_count[pool].log().float()
    scores = scores.masked_fill(pool == targets.unsqueeze(1), -torch.inf)
    own = (hidden * table.weight[targets]).sum(1, keepdim=True)
    expected = (torch.cat([own, scores], dim=1).logsumexp(1) - own[:, 0]).sum()
    value = loss(hidden, targets, table, pool)
    for ours, theirs in zip(
        (value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    peak = peak_bytes(lambda: loss(hidden, targets, table, pool).backward())
    beside = 4 * dim * (3 * num_rows + 3 * (num_rows + num_pool) + num_items) + 40 * num_items  # the table's gradient
    assert peak <= 1.2 * budget + beside < 4 * num_rows * num_pool


@pytest.mark.parametrize("per_position", [False, True])
def test_loss_of_nothing_is_zero_and_connected(per_position: bool) -> None:
    hidden, targets, table = problem(torch.float32)
    value = sampled_softmax(per_position=per_position)(hidden[:0], targets[:0], table)
    assert value.item() == 0.0
    assert all(x.abs().max() == 0 for x in gradients(value, hidden, table))


@pytest.mark.parametrize("per_position", [False, True])
def test_items_that_training_does_not_know_change_nothing(per_position: bool) -> None:
    torch.manual_seed(0)
    table, smaller = ItemTable(30, DIM), ItemTable(20, DIM)
    smaller.weight.data.copy_(table.weight.data[:21])
    table.num_train_items = 20
    hidden, targets = torch.randn(50, DIM), torch.randint(1, 21, (50,))
    results = []
    for items in (table, smaller):
        torch.manual_seed(1)
        value = sampled_softmax(0.5, num_uniform=64, per_position=per_position)(hidden, targets, items)
        (gradient,) = torch.autograd.grad(value, items.weight)
        results.append((value, gradient[:21]))
        assert not gradient[21:].any()
    torch.testing.assert_close(results[0], results[1])


def test_a_rows_own_target_is_found_like_a_pass_over_all_scores_finds_it() -> None:
    targets, negatives = torch.tensor([4, 9, 2, 2, 7]), torch.tensor([1, 2, 2, 4, 4, 4, 8])
    found = torch.zeros(len(targets), len(negatives), dtype=torch.bool)
    found[_own_target(targets, negatives)] = True
    assert torch.equal(found, negatives == targets.unsqueeze(1)) and int(found.sum()) == 7
