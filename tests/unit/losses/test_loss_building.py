"""From the `loss` section to a loss: what is built, what is learned, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from loss_problems import gradients, problem
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from genrec.config import LEARNED_TEMPERATURES, Loss, LossSection
from genrec.losses.binary import BinaryCrossEntropy
from genrec.losses.build import build_loss
from genrec.losses.full import FullSoftmax
from genrec.losses.sampled import SampledSoftmax
from genrec.losses.temperature import Temperature

LOSSES: dict[str, dict[str, Any]] = {
    "full": {"name": "full-softmax"},
    "shared": {"name": "sampled-softmax", "num_negatives": 12},
    "own": {"name": "sampled-softmax", "num_negatives": 12, "per_position": True},
    "popularity": {"name": "sampled-softmax", "num_negatives": 12, "negatives": "popularity"},
    "in-batch": {"name": "sampled-softmax", "num_negatives": 12, "negatives": "in-batch"},
    "mixed": {"name": "sampled-softmax", "num_negatives": 12, "negatives": "mixed"},
    "bce": {"name": "bce"},
    "gbce": {"name": "gbce", "num_negatives": 12},
}


def section(values: dict[str, Any]) -> Any:
    return TypeAdapter(Loss).validate_python(values)


def build(values: dict[str, Any]) -> Any:
    return build_loss(section(values))


def value_of(loss: Any, hidden: Tensor, targets: Tensor, table: Any) -> Tensor:
    """The loss with the same draws every time."""
    torch.manual_seed(7)
    table.train_counts = torch.arange(table.num_items + 1)
    result: Tensor = loss(hidden, targets, table, targets[::7])
    return result


def test_what_is_built() -> None:
    full = build({"name": "full-softmax", "temperature": 0.5, "max_logits_bytes": 2**16})
    assert isinstance(full, FullSoftmax)
    assert (full.temperature.start, full.max_logits_bytes) == (0.5, 2**16)
    mixed = build({**LOSSES["mixed"], "in_batch_fraction": 0.75})
    assert isinstance(mixed, SampledSoftmax)
    sampler = mixed.sampler
    assert (sampler.num_uniform, sampler.num_popular, sampler.num_in_batch) == (3, 0, 9)
    gbce = build({"name": "gbce", "calibration": 0.4})
    assert isinstance(gbce, BinaryCrossEntropy)
    assert (gbce.calibration, gbce.per_position, gbce.sampler.num_negatives) == (0.4, True, 256)
    assert build({"name": "bce"}).calibration == 0.0


@pytest.mark.parametrize(
    ("negatives", "correction", "corrected", "needs_counts", "num_in_batch"),
    [
        ("uniform", "auto", False, False, 0),
        ("uniform", "logq", True, False, 0),
        ("popularity", "auto", True, True, 0),
        ("popularity", "none", False, True, 0),
        ("in-batch", "auto", True, True, 12),
        ("in-batch", "none", False, False, 12),
        ("mixed", "auto", True, True, 6),
    ],
)
def test_correction_is_on_where_sampling_is_not_uniform(
    negatives: str, correction: str, corrected: bool, needs_counts: bool, num_in_batch: int
) -> None:
    values = {**LOSSES["shared"], "negatives": negatives, "correction": correction}
    config = section(values)
    assert build(values).sampler.corrected is corrected
    assert (config.needs_train_counts, config.num_in_batch) == (needs_counts, num_in_batch)


@pytest.mark.parametrize("name", LOSSES)
def test_a_learned_temperature_has_the_gradient_of_a_fixed_one(name: str) -> None:
    """Value and gradients equal those of a fixed temperature; its own gradient equals a finite difference."""
    hidden, targets, table = problem(torch.float64)
    learned = build({**LOSSES[name], "temperature": 0.5, "learn_temperature": True}).double()
    fixed = build({**LOSSES[name], "temperature": 0.5})
    value, expected = (value_of(loss, hidden, targets, table) for loss in (learned, fixed))
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # fp32 holds where it starts
    for ours, theirs in zip(gradients(value, hidden, table), gradients(expected, hidden, table), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    position = learned.temperature.position
    (slope,) = torch.autograd.grad(value_of(learned, hidden, targets, table), position)
    step, moved = 1e-6, []
    for sign in (1, -1):
        other = copy.deepcopy(learned)
        with torch.no_grad():
            other.temperature.position += sign * step
        moved.append(value_of(other, hidden, targets, table).item())
    assert slope.item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5)
    assert abs(slope.item()) > 1e-3


def test_a_learned_temperature_starts_where_told_and_stays_within_its_bounds() -> None:
    lowest, highest = LEARNED_TEMPERATURES
    for start in (0.05, 1.0, 7.0):
        assert Temperature(start, learned=True).value().item() == pytest.approx(start, rel=1e-5)
    temperature = Temperature(1.0, learned=True)
    assert temperature.position is not None
    for position, bound in ((-1e4, lowest), (1e4, highest)):
        with torch.no_grad():
            temperature.position.fill_(position)
        assert temperature.value().item() == pytest.approx(bound)


@pytest.mark.parametrize("name", LOSSES)
def test_a_fixed_loss_has_no_weights_and_a_learned_one_has_one(name: str) -> None:
    assert not build(LOSSES[name]).state_dict()
    assert list(build({**LOSSES[name], "learn_temperature": True}).state_dict()) == ["temperature.position"]


@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_takes_no_gradient_and_gets_the_same(name: str) -> None:
    hidden, targets, table = problem(torch.float32)
    loss = build(LOSSES[name])
    expected = value_of(loss, hidden, targets, table)
    with torch.no_grad():
        value = value_of(loss, hidden, targets, table)
    assert expected.requires_grad and not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (
            {"name": "sampled-softmax", "num_negatives": 20_000, "max_logits_bytes": 2**16},
            r"must hold one row of num_negatives \(20000\) fp32 logits; raise it to 80000 or more",
        ),
        (
            {"name": "gbce", "num_negatives": 10_000, "max_logits_bytes": 2**16},
            r"must hold one row of num_negatives \(10000\) fp32 logits and their gradients; raise it to 80000",
        ),
        (
            {"name": "sampled-softmax", "popularity_power": 0.5},
            r"popularity_power \(0.5\) is for negatives: popularity, not uniform; leave it out",
        ),
        (
            {"name": "sampled-softmax", "negatives": "in-batch", "in_batch_fraction": 0.5},
            r"in_batch_fraction \(0.5\) is for negatives: mixed, not in-batch",
        ),
        (
            {"name": "sampled-softmax", "negatives": "mixed", "num_negatives": 4, "in_batch_fraction": 0.01},
            r"leaves 0 of num_negatives \(4\) to the step's targets; mixed needs both",
        ),
        (
            {"name": "sampled-softmax", "negatives": "mixed", "per_position": True},
            r"mixed are targets of the whole step, which all positions share; leave out per_position",
        ),
        (
            {"name": "full-softmax", "temperature": 20, "learn_temperature": True},
            r"temperature \(20\) must lie between 0.01 and 10 where it is learned",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        section(values)


def test_every_kind_is_a_loss_section() -> None:
    assert all(isinstance(section(values), LossSection) for values in LOSSES.values())
