"""Heads: their losses by hand, blind to packing, with a gradient everywhere, and of every next event that is known."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from model_reference import ESASREC, HSTU_, LENGTHS, NUM_ITEMS, experiment, random_batch, select_sequences

from genrec.config import config_from_dict
from genrec.data.batch import Batch
from genrec.models.base import LossSum, SequenceModel
from genrec.models.build import build_model

NUM_ACTIONS = 3
FAMILIES = {"esasrec": ESASREC, "hstu": HSTU_}
WEIGHT, DWELL_WEIGHT = 0.3, 0.05
LABELS = ("next_items", "next_actions", "next_values")


def model_of(family: dict[str, Any], num_actions: int = NUM_ACTIONS) -> SequenceModel:
    values = experiment(family, {"name": "full-softmax"}).model_dump(mode="json")
    config = config_from_dict(values | {"heads": {"action": {"weight": WEIGHT}, "dwell": {"weight": DWELL_WEIGHT}}})
    torch.manual_seed(0)
    return build_model(config, NUM_ITEMS, num_actions=num_actions).double().eval()


def labelled_batch() -> Batch:
    """A whole step: every third item is no target, one action in four and one value in three is unknown."""
    torch.manual_seed(1)
    batch = random_batch()
    next_actions = torch.randint(0, NUM_ACTIONS + 1, (batch.num_tokens,))
    seconds = torch.exp(torch.rand(batch.num_tokens) * 9) - 1  # 0 to 8,000, on both sides of Huber's bend
    return with_sums(
        dataclasses.replace(
            batch,
            targets=torch.where(batch.targets % 3 == 0, -1, batch.targets),
            next_items=batch.targets,
            next_actions=next_actions,
            next_values=torch.where(torch.rand(batch.num_tokens) < 0.3, torch.nan, seconds),
        )
    )


def with_sums(batch: Batch) -> Batch:
    assert batch.next_actions is not None and batch.next_values is not None
    num_targets = int((batch.targets >= 0).sum())
    num_actions, num_values = int((batch.next_actions > 0).sum()), int(batch.next_values.isfinite().sum())
    return dataclasses.replace(
        batch,
        step_targets=num_targets,
        step_weight=float(num_targets),
        step_actions=num_actions,
        step_values=num_values,
    )


def step_loss(loss: LossSum, batch: Batch) -> torch.Tensor:
    return loss.loss_sum / batch.step_weight


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_formula(family: str) -> None:
    """The mean of the item losses, plus 0.3 times the mean of -log p(action | history, item), plus 0.05 times the mean
    of Huber's loss of log(1 + seconds), in plain Python."""
    model, batch = model_of(FAMILIES[family]), labelled_batch()
    assert model.heads is not None and model.heads.action is not None
    assert model.heads.dwell is not None
    head, dwell, table = model.heads.action, model.heads.dwell, model.item_table.weight
    hidden = model.encode(batch)
    losses, dwell_losses = [], []
    for place in range(batch.num_tokens):
        action, seconds = int(batch.next_actions[place]), float(batch.next_values[place])
        x = torch.cat([hidden[place], math.sqrt(model.item_table.dim) * table[batch.next_items[place]]])
        if not math.isnan(seconds):
            inner = dwell.inner.weight @ x + dwell.inner.bias
            inner = inner / (1 + torch.exp(-inner))
            error = abs((dwell.output.weight[0] @ inner + dwell.output.bias[0]).item() - math.log1p(seconds))
            dwell_losses.append(error**2 / 2 if error < 1 else error - 0.5)
        if action == 0:
            continue
        inner = head.inner.weight @ x + head.inner.bias
        inner = inner / (1 + torch.exp(-inner))
        scores = [(head.scores.weight[code] @ inner + head.scores.bias[code]).item() for code in (1, 2, 3)]
        losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[action - 1])
    items = dataclasses.replace(batch, **dict.fromkeys(LABELS))
    heads, model.heads = model.heads, None
    item_loss = step_loss(model(items), batch).item()
    model.heads = heads
    found = model(batch)
    action_loss, dwell_loss = sum(losses) / len(losses), sum(dwell_losses) / len(dwell_losses)
    total = item_loss + WEIGHT * action_loss + DWELL_WEIGHT * dwell_loss
    assert step_loss(found, batch).item() == pytest.approx(total, rel=1e-10)
    assert {name: float(part) / batch.step_weight for name, part in found.parts.items()} == pytest.approx(
        {"item": item_loss, "action": action_loss, "dwell": dwell_loss}, rel=1e-10
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_one_by_one(family: str) -> None:
    """Each sequence as a micro-batch of its own, with the sums of the whole step; loss and gradient."""
    model, batch = model_of(FAMILIES[family]), labelled_batch()
    names = [name for name, _ in model.named_parameters()]
    packed = step_loss(model(batch), batch)
    expected = torch.autograd.grad(packed, list(model.parameters()))
    singles = []
    for index in range(len(LENGTHS)):
        single, tokens = select_sequences(batch, [index])
        labels = {name: getattr(batch, name)[tokens] for name in LABELS}
        singles.append(step_loss(model(dataclasses.replace(single, **labels)), batch))
    total = torch.stack(singles).sum()
    torch.testing.assert_close(total, packed, rtol=1e-10, atol=0)
    for name, ours, theirs in zip(names, torch.autograd.grad(total, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12, msg=name)


def test_the_gradient_reaches_what_it_should() -> None:
    """The head, the network under it and the next item's vector; of the scores only the actions that there are."""
    model, batch = model_of(ESASREC), labelled_batch()
    assert model.heads is not None and model.heads.action is not None
    model.heads.losses(model.encode(batch), batch, model.item_table)["action"].backward()
    scores = model.heads.action.scores.weight.grad
    assert scores is not None
    assert (scores[1 : NUM_ACTIONS + 1].abs().sum(dim=1) > 0).all()
    assert scores[0].abs().sum() == scores[NUM_ACTIONS + 1 :].abs().sum() == 0
    table = model.item_table.weight.grad
    assert table is not None and table[0].abs().sum() == 0
    known = batch.next_items[batch.next_actions > 0]
    assert (table[known].abs().sum(dim=1) > 0).all()
    assert model.heads.action.inner.weight.grad is not None
    trunk = [p.grad for name, p in model.named_parameters() if name.startswith("blocks") and "weight" in name]
    assert trunk and all(grad is not None and grad.abs().sum() > 0 for grad in trunk)


def test_a_micro_batch_without_labels_has_a_gradient_of_zero() -> None:
    """Workers add gradients up weight by weight, so none may be missing."""
    model, batch = model_of(ESASREC), labelled_batch()
    nothing = torch.zeros(1, dtype=torch.int64)
    padding = dataclasses.replace(
        batch,
        **dict.fromkeys(("items", "times", "actions", "target_times", "next_items", "next_actions"), nothing),
        next_values=torch.tensor([torch.nan]),
        targets=torch.tensor([-1]),
        offsets=torch.tensor([0, 1]),
    )
    loss = model(padding)
    assert loss.loss_sum.item() == 0 and loss.num_targets == 0
    loss.loss_sum.backward()
    assert model.heads is not None
    for parameter in model.heads.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() == 0


def test_an_event_that_is_no_target_still_teaches_its_action() -> None:
    model, batch = model_of(ESASREC), labelled_batch()
    none = dataclasses.replace(batch, targets=torch.full_like(batch.targets, -1))
    assert float(model(none).parts["item"]) == 0
    for name in ("action", "dwell"):
        torch.testing.assert_close(model(none).parts[name], model(batch).parts[name])
    other = dataclasses.replace(batch, next_actions=torch.where(batch.targets < 0, 0, batch.next_actions))
    assert float(model(other).parts["action"]) != float(model(batch).parts["action"])


@pytest.mark.parametrize("missing", [{name: None} for name in LABELS] + [{"step_weight": 0.0}])
def test_a_batch_that_says_nothing_of_the_next_event_is_refused(missing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"learns? from the next events"):
        model_of(ESASREC)(dataclasses.replace(labelled_batch(), **missing))


def test_without_heads_nothing_is_drawn_for_them() -> None:
    """The other weights begin as they do without heads."""
    with_heads = model_of(ESASREC).state_dict()
    torch.manual_seed(0)
    plain = build_model(experiment(ESASREC, {"name": "full-softmax"}), NUM_ITEMS).double().state_dict()
    assert {name for name in with_heads if name not in plain} == {
        f"heads.{head}.{layer}.{kind}"
        for head, last in (("action", "scores"), ("dwell", "output"))
        for layer in ("inner", last)
        for kind in ("weight", "bias")
    }
    assert all(torch.equal(with_heads[name], value) for name, value in plain.items())
