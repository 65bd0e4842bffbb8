"""Chunked losses: equal to the plain formula in loss and gradients, never more logits than allowed."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genrec.config import FullSoftmaxConfig, SampledSoftmaxConfig
from genrec.losses import FullSoftmax, SampledSoftmax, build_loss
from genrec.models.item_table import ItemTable

NUM_ITEMS, DIM, NUM_TARGETS = 300, 6, 90
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def problem(dtype: torch.dtype, l2_normalize: bool = False) -> tuple[Tensor, Tensor, ItemTable]:
    torch.manual_seed(0)
    table = ItemTable(NUM_ITEMS, DIM, std=0.8, l2_normalize=l2_normalize).to(dtype)
    hidden = torch.randn(NUM_TARGETS, DIM).to(dtype).requires_grad_()
    return hidden, torch.randint(1, NUM_ITEMS + 1, (NUM_TARGETS,)), table


def gradients(loss: Tensor, hidden: Tensor, table: ItemTable) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3.0 * loss, (hidden, table.weight))  # a factor, as the step's normalisation gives one


def assert_near(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for ours, theirs in zip(results, expected, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance * theirs.abs().max().item(), rtol=0)


def vectors(hidden: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    """Both sides in at least fp32, normalised where the table is cosine."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows, items = hidden.to(wide), table.weight.to(wide)
    if table.l2_normalize:
        rows, items = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-6) for x in (rows, items))
    return rows, items


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize(
    "max_logits", [1_000_000, NUM_ITEMS * 40, 5_000, 900, 50], ids=lambda n: f"{n} logits"
)  # one chunk; several chunks of rows; and, below 128 rows at a time, square tiles of 70, 30 and 7
def test_full_softmax_equals_cross_entropy(
    dtype: torch.dtype, l2_normalize: bool, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.losses.MIN_CHUNK_ROWS", 30)
    hidden, targets, table = problem(dtype, l2_normalize)
    rows, items = vectors(hidden, table)
    logits = rows @ items[1:].T / 0.7
    expected = F.cross_entropy(logits, targets - 1, reduction="sum")
    element_size = 8 if dtype == torch.float64 else 4
    loss = FullSoftmax(0.7, max_logits * element_size)(hidden, targets, table)
    assert_near((loss, *gradients(loss, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)
    with torch.no_grad():
        assert_near((FullSoftmax(0.7, max_logits * element_size)(hidden, targets, table),), (expected,), dtype)


def test_full_softmax_of_extreme_scores_is_finite() -> None:
    table = ItemTable(4, 1)
    with torch.no_grad():
        table.weight[1:, 0] = torch.tensor([1e4, -1e4, 0.0, 9e3])
    hidden = torch.ones(2, 1, requires_grad=True)
    loss = FullSoftmax(1.0, 2**16)(hidden, torch.tensor([1, 2]), table)
    assert loss.item() == pytest.approx(2e4)
    assert all(torch.isfinite(x).all() for x in gradients(loss, hidden, table))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("max_logits", [1_000_000, 64 * 7, 64], ids=lambda n: f"{n} logits")
def test_sampled_softmax_equals_brute_force(dtype: torch.dtype, l2_normalize: bool, max_logits: int) -> None:
    hidden, targets, table = problem(dtype, l2_normalize)
    targets[:10] = 7
    negatives = torch.cat(
        [torch.randint(1, NUM_ITEMS + 1, (61,)), torch.tensor([7, 7, 299])]
    )  # hits, one of them twice
    rows, items = vectors(hidden, table)
    expected = rows.new_zeros(())
    for row, target in zip(rows, targets.tolist(), strict=True):
        others = [item for item in negatives.tolist() if item != target]
        scores = items[[target, *others]] @ row / 0.7
        expected = expected - scores.log_softmax(0)[0]
    element_size = 8 if dtype == torch.float64 else 4
    loss = SampledSoftmax(0.7, 64, max_logits * element_size).with_negatives(hidden, targets, negatives, table)
    assert_near((loss, *gradients(loss, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)


def test_a_false_negative_pushes_nothing_away() -> None:
    hidden, _, table = problem(torch.float64)
    targets = torch.full((NUM_TARGETS,), 5)
    loss = SampledSoftmax(1.0, 2, 2**20).with_negatives(hidden, targets, torch.tensor([5, 5]), table)
    assert loss.item() == 0.0  # nothing is left to tell the target from
    assert all(x.abs().max() == 0 for x in gradients(loss, hidden, table))


def test_negatives_are_uniform_over_real_items() -> None:
    seen: list[Tensor] = []

    class Recorder(SampledSoftmax):
        def with_negatives(self, hidden: Tensor, targets: Tensor, negatives: Tensor, item_table: ItemTable) -> Tensor:
            seen.append(negatives)
            return hidden.sum()

    torch.manual_seed(0)
    hidden, targets, _ = problem(torch.float32)
    Recorder(1.0, 100_000, 2**20)(hidden, targets, ItemTable(10, DIM))
    counts = torch.bincount(seen[0], minlength=11)
    assert counts[0] == 0
    assert ((counts[1:] - 10_000).abs() < 4 * 9_000**0.5).all()  # four standard errors


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation returned."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        return result


@pytest.mark.parametrize("max_logits_bytes", [2**16, 2**20])
@pytest.mark.parametrize("name", ["full", "sampled"])
def test_logits_stay_within_their_bytes(name: str, max_logits_bytes: int) -> None:
    num_targets, num_items, dim = 4_000, 3_000, 2
    table = ItemTable(num_items, dim)
    hidden = torch.randn(num_targets, dim, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_targets,))
    loss = {
        "full": FullSoftmax(1.0, max_logits_bytes),
        "sampled": SampledSoftmax(1.0, 1_000, max_logits_bytes),
    }[name]
    with LargestTensor() as largest:
        loss(hidden, targets, table).backward()
    others = dim * (num_targets + num_items + 1_000)  # hidden states, table, gathered vectors
    assert largest.num_elements <= max(max_logits_bytes // 4, others)
    assert largest.num_elements >= max_logits_bytes // 4 * 0.9  # and they use what they may


def test_loss_of_nothing_is_zero_and_connected() -> None:
    for loss in (FullSoftmax(1.0, 2**16), SampledSoftmax(1.0, 8, 2**16)):
        hidden, targets, table = problem(torch.float32)
        value = loss(hidden[:0], targets[:0], table)
        assert value.item() == 0.0
        assert all(x.abs().max() == 0 for x in gradients(value, hidden, table))


def test_evaluation_takes_no_gradient() -> None:
    hidden, targets, table = problem(torch.float32)
    with torch.no_grad():
        assert not FullSoftmax(1.0, 2**16)(hidden, targets, table).requires_grad
        assert not SampledSoftmax(1.0, 8, 2**16)(hidden, targets, table).requires_grad


def test_build_loss() -> None:
    full = build_loss(FullSoftmaxConfig(name="full-softmax", temperature=0.5, max_logits_bytes=2**16))
    assert full == FullSoftmax(0.5, 2**16)
    sampled = build_loss(SampledSoftmaxConfig(name="sampled-softmax", temperature=0.05, num_negatives=7))
    assert sampled == SampledSoftmax(0.05, 7, 64 * 2**20)


def test_negatives_that_cannot_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold one row of num_negatives \(20000\)"):
        SampledSoftmaxConfig(name="sampled-softmax", num_negatives=20_000, max_logits_bytes=2**16)


def test_items_that_training_does_not_know_change_no_loss() -> None:
    torch.manual_seed(0)
    table = ItemTable(30, 8)
    smaller = ItemTable(20, 8)
    smaller.weight.data.copy_(table.weight.data[:21])
    table.num_train_items = 20
    hidden, targets = torch.randn(50, 8), torch.randint(1, 21, (50,))
    for loss in (FullSoftmax(0.5, 2**20), SampledSoftmax(0.5, 64, 2**20)):
        results = []
        for items in (table, smaller):
            torch.manual_seed(1)
            value = loss(hidden, targets, items)
            (gradient,) = torch.autograd.grad(value, items.weight)
            results.append((value, gradient[:21]))
            assert not gradient[21:].any()
        torch.testing.assert_close(results[0], results[1])
