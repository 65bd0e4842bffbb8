"""The chunked cross entropy over the catalogue: equal to the plain one, and never more logits than allowed."""

import pytest
import torch
import torch.nn.functional as F
from loss_problems import NUM_ITEMS, TOLERANCE, assert_near, gradients, peak_bytes, problem, vectors

from genrec.losses.full import FullSoftmax
from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable


def full_softmax(temperature: float, max_logits_bytes: int) -> FullSoftmax:
    return FullSoftmax(Temperature(temperature), max_logits_bytes)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize(
    "max_logits", [1_000_000, NUM_ITEMS * 40, 5_000, 900, 50], ids=lambda n: f"{n} logits"
)  # one chunk; several chunks of rows; and, below 128 rows at a time, square tiles of 70, 30 and 7
def test_equals_cross_entropy(
    dtype: torch.dtype, l2_normalize: bool, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.losses.full.MIN_CHUNK_ROWS", 30)
    hidden, targets, table = problem(dtype, l2_normalize)
    rows, items = vectors(hidden, table)
    logits = rows @ items[1:].T / 0.7
    expected = F.cross_entropy(logits, targets - 1, reduction="sum")
    element_size = 8 if dtype == torch.float64 else 4
    loss = full_softmax(0.7, max_logits * element_size)(hidden, targets, table)
    assert_near((loss, *gradients(loss, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)
    with torch.no_grad():
        assert_near((full_softmax(0.7, max_logits * element_size)(hidden, targets, table),), (expected,), dtype)


def test_extreme_scores_are_finite() -> None:
    table = ItemTable(4, 1)
    with torch.no_grad():
        table.weight[1:, 0] = torch.tensor([1e4, -1e4, 0.0, 9e3])
    hidden = torch.ones(2, 1, requires_grad=True)
    loss = full_softmax(1.0, 2**16)(hidden, torch.tensor([1, 2]), table)
    assert loss.item() == pytest.approx(2e4)
    assert all(torch.isfinite(x).all() for x in gradients(loss, hidden, table))


@pytest.mark.parametrize("max_logits_bytes", [2**19, 2**21, 2**23])  # two of tiles, one of chunks of rows
def test_forward_and_backward_stay_within_the_budget(max_logits_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is allocated counts, hidden states and gradients too; dim 1 keeps these small."""
    monkeypatch.setattr("genrec.losses.full.CPU_CACHE_LOGITS", 2**30)
    num_targets, num_items = 2_000, 6_000
    table = ItemTable(num_items, 1)
    hidden = torch.randn(num_targets, 1, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_targets,))
    loss = full_softmax(1.0, max_logits_bytes)
    peak = peak_bytes(lambda: loss(hidden, targets, table).backward())
    assert 0.9 * max_logits_bytes <= peak <= 1.2 * max_logits_bytes + 4 * num_items * 4
    plain = peak_bytes(lambda: F.cross_entropy(hidden @ table.weight.T, targets, reduction="sum").backward())
    assert plain > 2 * 4 * num_targets * num_items  # and the measure sees what the plain loss allocates


@pytest.mark.parametrize("max_logits_bytes", [2**22, 2**24])  # tiles; chunks of rows
def test_at_a_real_width_only_gradients_are_beside_the_budget(
    max_logits_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled rows, the gradients that are made with the loss, and those times the loss's own: no third of logits."""
    monkeypatch.setattr("genrec.losses.full.CPU_CACHE_LOGITS", 2**30)
    num_targets, num_items, dim = 2_000, 12_000, 32
    table = ItemTable(num_items, dim)
    hidden = torch.randn(num_targets, dim, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_targets,))
    loss = full_softmax(0.5, max_logits_bytes)
    peak = peak_bytes(lambda: loss(hidden, targets, table).backward())
    beside = 4 * dim * (3 * num_targets + 2 * (num_items + 1))
    assert 0.9 * max_logits_bytes <= peak <= 1.2 * max_logits_bytes + beside
