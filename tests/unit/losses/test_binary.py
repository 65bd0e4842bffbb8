"""Binary cross entropy, plain and generalised, against the published formula written out."""

import pytest
import torch
from loss_problems import NUM_ITEMS, NUM_TARGETS, TOLERANCE, assert_near, gradients, peak_bytes, problem, vectors
from torch import Tensor

from genrec.losses.binary import BinaryCrossEntropy, beta
from genrec.losses.negatives import Negatives, NegativeSampler
from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable


def binary(
    calibration: float, max_logits_bytes: int = 2**20, per_position: bool = True, num_negatives: int = 4
) -> BinaryCrossEntropy:
    sampler = NegativeSampler(num_uniform=num_negatives)
    return BinaryCrossEntropy(
        Temperature(0.7), sampler, max_logits_bytes, calibration=calibration, per_position=per_position
    )


def published(hidden: Tensor, targets: Tensor, ids: Tensor, table: ItemTable, calibration: float) -> Tensor:
    """gBCE through a clamped fp64 probability, a transformed logit and BCE with logits; summed over the rows."""
    rows, items = vectors(hidden, table)
    num_negatives = ids.shape[1]
    alpha = num_negatives / (table.num_items - 1)
    power = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    positive = ((rows * items[targets]).sum(1, keepdim=True) / 0.7).double()
    probability = positive.sigmoid().clamp(1e-10, 1 - 1e-10)
    transformed = torch.log(1 / (torch.clamp(probability**-power, min=1 + 1e-10) - 1))
    negative = torch.einsum("nd,nkd->nk", rows, items[ids]).double() / 0.7
    logits = torch.cat([transformed, negative], dim=1)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    counted = torch.cat([torch.ones_like(positive), (ids != targets.unsqueeze(1)).double()], dim=1)
    return (entropy * counted).sum() / (1 + num_negatives)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("max_logits_bytes", [2**20, 2**9])
@pytest.mark.parametrize("l2_normalize", [False, True])
def test_own_negatives_equal_the_published_formula(
    dtype: torch.dtype, calibration: float, max_logits_bytes: int, l2_normalize: bool
) -> None:
    hidden, targets, table = problem(dtype, l2_normalize)
    ids = torch.randint(1, NUM_ITEMS + 1, (NUM_TARGETS, 11))
    ids[:20, 3] = targets[:20]
    expected = published(hidden, targets, ids, table, calibration)
    value = binary(calibration, max_logits_bytes).with_negatives(hidden, targets, Negatives(ids, None), table)
    assert_near((value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("max_logits_bytes", [2**20, 2**9])
def test_shared_negatives_equal_own_ones_that_are_the_same(dtype: torch.dtype, max_logits_bytes: int) -> None:
    hidden, targets, table = problem(dtype)
    targets[:10] = 7
    ids = torch.cat([torch.randint(1, NUM_ITEMS + 1, (10,)), torch.tensor([7, 7])]).sort().values
    expected = binary(0.75).with_negatives(hidden, targets, Negatives(ids.expand(NUM_TARGETS, -1), None), table)
    shared = binary(0.75, max_logits_bytes, per_position=False)
    value = shared.with_negatives(hidden, targets, Negatives(ids, None), table)
    assert_near((value, *gradients(value, hidden, table)), (expected, *gradients(expected, hidden, table)), dtype)


def test_beta_by_hand() -> None:
    assert beta(0.0, 256, 3_417) == pytest.approx(1.0)  # plain BCE
    assert beta(1.0, 256, 3_417) == pytest.approx(256 / 3_416)  # in full: the sampling rate
    assert beta(0.75, 256, 3_417) == pytest.approx(0.25 + 0.75 * 256 / 3_416)
    assert beta(0.75, 500, 101) == 1.0  # more draws than items: nothing to calibrate


def test_scores_where_the_published_clamps_end_are_exact() -> None:
    """At a score of -200 a probability is 0 in fp32, and clamped to 1e-10 it has no gradient; softplus has both."""
    table = ItemTable(3, 1)
    with torch.no_grad():
        table.weight[1:, 0] = torch.tensor([-140.0, 140.0, 0.0])
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = binary(0.0)
    value = loss.with_negatives(hidden, torch.tensor([1]), Negatives(torch.tensor([[2, 3]]), None), table)
    assert value.item() == pytest.approx((200 + 200 + 0.6931472) / 3)
    assert gradients(value, hidden, table)[0].item() == pytest.approx(3 * (140 + 140) / 0.7 / 3)


@pytest.mark.parametrize("per_position", [False, True])
def test_scores_stay_within_their_bytes(per_position: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.losses.contrast.CPU_CACHE_LOGITS", 2**30)
    num_targets, num_items, num_negatives, budget = 4_000, 3_000, 1_000, 2**22
    table = ItemTable(num_items, 4)
    hidden = torch.randn(num_targets, 4, requires_grad=True)
    targets = torch.randint(1, num_items + 1, (num_targets,))
    shape = (num_targets, num_negatives) if per_position else (num_negatives,)
    negatives = Negatives(torch.randint(1, num_items + 1, shape).sort().values, None)
    loss = binary(0.75, budget, per_position)
    peak = peak_bytes(lambda: loss.with_negatives(hidden, targets, negatives, table).backward())
    assert 0.9 * budget <= peak <= 1.2 * budget


@pytest.mark.parametrize("per_position", [False, True])
def test_training_with_it_ranks_targets_first(per_position: bool) -> None:
    torch.manual_seed(0)
    table, targets = ItemTable(30, 16, std=0.3), torch.arange(1, 31)
    hidden = torch.randn(30, 16)
    loss = binary(0.75, per_position=per_position, num_negatives=8)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(hidden, targets, table).backward()
        optimizer.step()
    assert (table.scores(hidden)[:, 1:].argmax(1) + 1 == targets).float().mean() > 0.9
