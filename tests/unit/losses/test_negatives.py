"""Where negatives come from, and that logQ makes the denominator of the softmax unbiased, whatever their source."""

from typing import Any

import pytest
import torch
from loss_problems import sampled_softmax
from torch import Tensor

from genrec.losses.negatives import NegativeSampler
from genrec.models.item_table import ItemTable

NUM_ITEMS, TARGET, DRAWS = 12, 3, 600
HIDDEN = torch.tensor([[1.0, 0.5, -0.5]], dtype=torch.float64)
COUNTS = torch.tensor([0, 400, 200, 100, 80, 60, 40, 30, 25, 20, 15, 10, 20])
"""Training events by item; together 1,000."""


@pytest.fixture
def table() -> ItemTable:
    """Popular items score higher, as in a model that has learned something: from about 1 down to -1."""
    torch.manual_seed(0)
    table = ItemTable(NUM_ITEMS, 3, std=0.2).double()
    with torch.no_grad():
        table.weight[1:, 0] += torch.linspace(1, -1, NUM_ITEMS, dtype=torch.float64)
    table.train_counts = COUNTS
    return table


def draw_pool(num_negatives: int) -> Tensor:
    """Targets of a step: positions of the log, drawn without putting one back."""
    log = torch.repeat_interleave(torch.arange(NUM_ITEMS + 1), COUNTS)
    return log[torch.randperm(len(log))[:num_negatives]]


SOURCES: dict[str, dict[str, Any]] = {
    "uniform": {"num_uniform": 8},
    "popularity": {"num_popular": 8},
    "popularity ** 0.5": {"num_popular": 8, "popularity_power": 0.5},
    "in-batch": {"num_in_batch": 8},
    "mixed": {"num_uniform": 4, "num_in_batch": 4},
}


def partitions(table: ItemTable, draws: int, per_position: bool = False, **source: Any) -> tuple[Tensor, Tensor]:
    """Estimates of the softmax's denominator [draws], and of its gradient by the hidden state [draws, dim]."""
    hidden = HIDDEN.clone().requires_grad_()
    target = torch.tensor([TARGET])
    loss = sampled_softmax(per_position=per_position, **source)
    values, slopes = [], []
    for _ in range(draws):
        pool = draw_pool(source["num_in_batch"]) if "num_in_batch" in source else None
        log_partition = (loss(hidden, target, table, pool) + (hidden * table.weight[TARGET]).sum()).squeeze()
        (slope,) = torch.autograd.grad(log_partition, hidden)
        values.append(log_partition.detach().exp())
        slopes.append(slope[0] * values[-1])
    return torch.stack(values), torch.stack(slopes)


def exact(table: ItemTable) -> tuple[Tensor, Tensor]:
    hidden = HIDDEN.clone().requires_grad_()
    partition = (table.weight[1:] @ hidden[0]).exp().sum()
    return partition.detach(), torch.autograd.grad(partition, hidden)[0][0]


def errors(samples: Tensor, truth: Tensor) -> Tensor:
    """Distance of the mean from the truth, in standard errors."""
    result: Tensor = (samples.mean(0) - truth).abs() / (samples.std(0) / len(samples) ** 0.5)
    return result


@pytest.mark.parametrize(
    ("source", "per_position"),
    [*((name, False) for name in SOURCES), ("uniform", True), ("popularity ** 0.5", True)],
)
def test_corrected_partition_and_its_gradient_are_unbiased(table: ItemTable, source: str, per_position: bool) -> None:
    """The mean of the draws is within 4 standard errors; without the correction it is nowhere near."""
    torch.manual_seed(1)
    partition, slope = exact(table)
    values, slopes = partitions(table, DRAWS, per_position, corrected=True, **SOURCES[source])
    assert errors(values, partition) < 4
    assert (errors(slopes, slope) < 4).all()
    assert values.std() / len(values) ** 0.5 < 0.015 * partition  # the test can see an error of 6%
    own = (table.weight[TARGET] @ HIDDEN[0]).exp().detach()
    plain, _ = partitions(table, DRAWS // 2, per_position, **SOURCES[source])
    scaled = own + (plain - own) * NUM_ITEMS / 8  # as though all items were drawn alike
    assert (errors(scaled, partition) > 10) == (source != "uniform")


def test_targets_that_are_dealt_out_by_other_shares_are_corrected_by_them(table: ItemTable) -> None:
    """Two parts, of items 1 to 4 and of the others: one has 780 events of the log's 1,000, and 4 of 1,000 targets."""
    torch.manual_seed(1)
    is_first = torch.arange(NUM_ITEMS + 1) <= 4
    parts = [torch.where(is_first, COUNTS, 0), torch.where(is_first, 0, COUNTS)]
    shares = sum(share * part.double() / part.sum() for share, part in zip((0.004, 0.996), parts, strict=True))
    partition, _ = exact(table)

    def mean_error() -> float:
        loss = sampled_softmax(corrected=True, num_in_batch=8)
        target, values = torch.tensor([TARGET]), []
        for _ in range(DRAWS):
            pool = torch.multinomial(shares, 8, replacement=True)
            values.append((loss(HIDDEN, target, table, pool) + (HIDDEN * table.weight[TARGET]).sum()).exp().detach())
        return float(errors(torch.stack(values), partition))

    assert mean_error() > 10
    table.target_shares = shares
    assert mean_error() < 4


def test_the_corrected_loss_nears_the_full_softmax(table: ItemTable) -> None:
    torch.manual_seed(1)
    log_partition = exact(table)[0].log()
    gaps = []
    for number in (2, 512):
        values, _ = partitions(table, DRAWS // 3, corrected=True, num_popular=number)
        gaps.append((values.log().mean() - log_partition).abs().item())
    assert gaps[0] > 0.05
    assert gaps[1] < 0.01


def test_merging_equal_negatives_changes_nothing(table: ItemTable) -> None:
    sampler = NegativeSampler(num_uniform=40, num_in_batch=60, corrected=True)
    torch.manual_seed(2)
    merged = sampler.shared(table, draw_pool(60), torch.device("cpu"))
    assert merged.log_weights is not None
    assert merged.ids.tolist() == sorted(set(merged.ids.tolist()))
    expected = 40 / NUM_ITEMS + 60 * COUNTS[merged.ids].double() / 1_000
    counts = merged.log_weights.exp() * expected
    torch.testing.assert_close(counts, counts.round(), atol=1e-9, rtol=0)
    assert round(counts.sum().item()) == 100


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ({"num_uniform": 100_000}, torch.ones(NUM_ITEMS)),
        ({"num_popular": 100_000}, COUNTS[1:].double()),
        ({"num_popular": 100_000, "popularity_power": 0.5}, COUNTS[1:].double() ** 0.5),
    ],
    ids=["uniform", "popularity", "popularity ** 0.5"],
)
def test_draws_follow_their_distribution(table: ItemTable, source: dict[str, Any], weights: Tensor) -> None:
    torch.manual_seed(0)
    drawn = NegativeSampler(**source).shared(table, None, torch.device("cpu"))
    counts = torch.bincount(drawn.ids, minlength=NUM_ITEMS + 1)
    assert drawn.log_weights is None
    assert counts[0] == 0
    expected = 100_000 * weights / weights.sum()
    assert ((counts[1:] - expected).abs() < 4.5 * expected**0.5).all()


def test_items_without_a_training_event_are_never_drawn_by_popularity(table: ItemTable) -> None:
    table.train_counts = torch.tensor([0, 5, 0, 0, 1, *[0] * 8])
    for power in (0.0, 1.0):
        sampler = NegativeSampler(num_popular=2_000, popularity_power=power)
        assert set(sampler.shared(table, None, torch.device("cpu")).ids.tolist()) == {1, 4}


def test_what_a_source_needs_is_asked_for(table: ItemTable) -> None:
    with pytest.raises(ValueError, match="this batch has no pool"):
        NegativeSampler(num_in_batch=3).shared(table, None, torch.device("cpu"))
    table.train_counts = None
    with pytest.raises(ValueError, match="training events of every item"):
        NegativeSampler(num_popular=3).shared(table, None, torch.device("cpu"))


def test_a_step_with_few_targets_gives_what_it_has(table: ItemTable) -> None:
    torch.manual_seed(1)
    partition, _ = exact(table)
    loss = sampled_softmax(num_in_batch=50, corrected=True)
    with torch.no_grad():
        own = (HIDDEN * table.weight[TARGET]).sum()
        drawn = [(loss(HIDDEN, torch.tensor([TARGET]), table, draw_pool(5)) + own).exp() for _ in range(DRAWS)]
    assert errors(torch.stack(drawn).flatten(), partition) < 4


@pytest.mark.parametrize("source", [{"num_in_batch": 3}, {"num_in_batch": 3, "num_uniform": 5}])
def test_a_pool_may_hold_an_item_without_training_events(table: ItemTable, source: dict[str, int]) -> None:
    """As in a refit, which also trains on validation events: the item counts as one with a single event."""
    once = COUNTS.clone()
    once[5] = 1
    pool = torch.tensor([1, 2, 5])
    losses = []
    for counts in (once.where(once != 1, 0), once):
        table.train_counts = counts
        torch.manual_seed(3)
        loss = sampled_softmax(corrected=True, **source)
        losses.append(loss(HIDDEN.clone().requires_grad_(), torch.tensor([TARGET]), table, pool))
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses, atol=5e-3, rtol=0)
