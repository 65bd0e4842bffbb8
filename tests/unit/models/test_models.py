"""What holds for every model: equal to its padded transcription, causal, and blind to how a batch is put together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_reference import (
    DECODER,
    ESASREC,
    HSTU_,
    LENGTHS,
    MAX_LENGTH,
    NUM_ITEMS,
    SASREC,
    experiment,
    literal_decoder,
    literal_esasrec,
    literal_hstu,
    literal_sasrec,
    random_batch,
    select_sequences,
)

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.models import jagged
from genrec.models.base import SequenceModel
from genrec.models.build import build_model

VARIANTS: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "sasrec": (SASREC, literal_sasrec),
    "esasrec": (ESASREC, literal_esasrec),
    "decoder": (DECODER, literal_decoder),
    "decoder-all-heads": (DECODER | {"num_key_value_heads": None}, literal_decoder),
    "decoder-recompute": (DECODER | {"recompute": "block"}, literal_decoder),
    "hstu": (HSTU_, literal_hstu),
    "hstu-position-bias": (HSTU_ | {"time_bias": False}, literal_hstu),
    "hstu-time-bias": (HSTU_ | {"position_bias": False}, literal_hstu),
    "hstu-no-bias": (HSTU_ | {"position_bias": False, "time_bias": False}, literal_hstu),
    "hstu-no-query-time": (HSTU_ | {"query_time": False}, literal_hstu),
    "hstu-concat-ua": (HSTU_ | {"concat_ua": True}, literal_hstu),
    "hstu-softmax": (HSTU_ | {"attention": {"name": "softmax"}}, literal_hstu),
    "hstu-by-length": (HSTU_ | {"attention": {"divisor": "length"}}, literal_hstu),
    "hstu-scaled": (HSTU_ | {"attention": {"scale": True}}, literal_hstu),
}
FAMILIES = ["sasrec", "esasrec", "hstu", "decoder"]
QUERY_TIME = {name for name in VARIANTS if name.startswith("hstu")} - {
    "hstu-position-bias",
    "hstu-no-bias",
    "hstu-no-query-time",
}
SAMPLED = {"name": "sampled-softmax", "num_negatives": 20}


def config_of(variant: str, **changes: Any) -> ExperimentConfig:
    return experiment(VARIANTS[variant][0] | changes)


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a new group cheap, so that the test batch falls into several, with padding in some."""
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 1000)
    assert len(jagged.jagged_layout(random_batch().offsets, 1).groups) > 2


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(variant: str) -> SequenceModel:
    """Each variant in fp64, without dropout, with weights large enough that every term counts."""
    torch.manual_seed(0)
    built = build_model(config_of(variant), NUM_ITEMS).double().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name != "item_table.weight":
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(10)
    return built


def parameters_of(model: SequenceModel) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())


def test_equals_the_padded_transcription(model: SequenceModel, variant: str) -> None:
    batch = random_batch()
    literal = VARIANTS[variant][1]
    weights = torch.randn(batch.num_tokens, model.item_table.dim, dtype=torch.float64)
    results = []
    for hidden in (model.encode(batch), literal(model, batch, MAX_LENGTH, config_of(variant).model)):
        grads = torch.autograd.grad((hidden * weights).sum(), list(model.parameters()))
        results.append((hidden, dict(zip(parameters_of(model), grads, strict=True))))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    their_grads["item_table.weight"][0] = 0  # the transcription pads with item 0; its row never learns
    for name, gradient in our_grads.items():
        torch.testing.assert_close(gradient, their_grads[name], atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0, name


def test_a_batch_of_many_equals_each_sequence_alone(model: SequenceModel) -> None:
    batch = random_batch()
    together = model.encode(batch)
    for i in range(batch.num_sequences):
        alone, tokens = select_sequences(batch, [i])
        torch.testing.assert_close(together[tokens], model.encode(alone), atol=1e-12, rtol=1e-10)


def test_the_order_of_sequences_does_not_matter(model: SequenceModel) -> None:
    batch = random_batch()
    permuted, tokens = select_sequences(batch, torch.randperm(len(LENGTHS)).tolist())
    torch.testing.assert_close(model.encode(batch)[tokens], model.encode(permuted), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(model(batch).loss_sum, model(permuted).loss_sum, atol=1e-9, rtol=1e-10)


def test_a_later_event_changes_nothing_earlier(model: SequenceModel) -> None:
    """Event 40 of the first sequence, its time and the query time of event 39 and later change."""
    batch = random_batch((70, 5))
    later = torch.arange(75)
    changed = dataclasses.replace(
        batch,
        items=torch.where((later >= 40) & (later < 70), batch.items % NUM_ITEMS + 1, batch.items),
        times=torch.where((later >= 40) & (later < 70), batch.times + 10_000_000, batch.times),
        target_times=torch.where((later >= 39) & (later < 70), batch.target_times + 10_000_000, batch.target_times),
    )
    before, after = model.encode(batch), model.encode(changed)
    same = (before == after).all(dim=1)
    assert same[:39].all()
    assert same[70:].all()
    assert not same[40:70].any()
    assert same[39] == (not model.uses_query_time)


def test_query_time_is_read_exactly_when_declared(model: SequenceModel, variant: str) -> None:
    batch = random_batch()
    asked_later = dataclasses.replace(batch, target_times=batch.target_times + 10_000_000)
    differs = bool((model.encode(batch) != model.encode(asked_later)).any())
    assert differs == model.uses_query_time == (variant in QUERY_TIME)


def test_times_are_read_exactly_when_declared(model: SequenceModel) -> None:
    batch = random_batch()
    times = batch.times + 10_000_000 * torch.arange(batch.num_tokens)
    moved = dataclasses.replace(batch, times=times, target_times=batch.target_times + times - batch.times)
    differs = bool((model.encode(batch) != model.encode(moved)).any())
    assert differs == model.reads_times


def test_a_prefix_of_a_sequence_has_the_same_states(model: SequenceModel) -> None:
    """No row knows how many events follow."""
    whole, prefix = random_batch((70,)), random_batch((70,))
    part = {name: getattr(prefix, name)[:40] for name in ("items", "times", "actions", "targets", "target_times")}
    prefix = dataclasses.replace(prefix, offsets=torch.tensor([0, 40]), **part)
    torch.testing.assert_close(model.encode(whole)[:40], model.encode(prefix), atol=1e-12, rtol=1e-10)


def test_a_single_event(model: SequenceModel) -> None:
    hidden = model.encode(random_batch((1,)))
    assert hidden.shape == (1, model.item_table.dim)
    assert torch.isfinite(hidden).all()


def test_a_full_window(model: SequenceModel) -> None:
    assert torch.isfinite(model.encode(random_batch((MAX_LENGTH,)))).all()


@pytest.mark.parametrize("loss", [{"name": "full-softmax"}, SAMPLED])
@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_without_targets_is_zero_and_connected(variant: str, loss: dict[str, Any]) -> None:
    model = build_model(experiment(VARIANTS[variant][0], loss), NUM_ITEMS)
    batch = random_batch((3, 5))
    result = model(dataclasses.replace(batch, targets=torch.full_like(batch.targets, -1)))
    assert result.num_targets == 0
    assert result.loss_sum.item() == 0.0
    result.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name


@pytest.mark.parametrize("variant", FAMILIES)
def test_targets_of_minus_one_do_not_count(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(variant), NUM_ITEMS).eval()
    batch = random_batch()
    counted = torch.arange(batch.num_tokens) % 3 == 0
    some = model(dataclasses.replace(batch, targets=torch.where(counted, batch.targets, -1)))
    rest = model(dataclasses.replace(batch, targets=torch.where(counted, -1, batch.targets)))
    whole = model(batch)
    assert some.num_targets == int(counted.sum())
    assert some.num_targets + rest.num_targets == whole.num_targets == batch.num_tokens
    torch.testing.assert_close(some.loss_sum + rest.loss_sum, whole.loss_sum, atol=0, rtol=1e-5)


def test_builds_on_the_meta_device(variant: str) -> None:
    with torch.device("meta"):
        model = build_model(config_of(variant), 10_000_000)
    assert sum(p.numel() for p in model.parameters()) > 12 * 10_000_000
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_seed_decides_weights_dropout_and_negatives(variant: str) -> None:
    def losses(weight_seed: int, step_seed: int) -> list[float]:
        torch.manual_seed(weight_seed)
        model = build_model(experiment(VARIANTS[variant][0], SAMPLED), NUM_ITEMS).train()
        torch.manual_seed(step_seed)
        return [model(random_batch()).loss_sum.item() for _ in range(2)]

    assert losses(1, 2) == losses(1, 2)
    assert len({*losses(1, 2), *losses(1, 3), *losses(2, 2)}) == 6


@pytest.mark.parametrize("loss", [{"name": "full-softmax"}, SAMPLED])
@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("way", ["bf16", "autocast"])
def test_bf16_is_near_fp32(variant: str, loss: dict[str, Any], way: str) -> None:
    """bf16 weights as DeepSpeed holds them, and autocast over fp32 weights: the loss within 2%, no lost gradient."""
    torch.manual_seed(0)
    model = build_model(experiment(VARIANTS[variant][0], loss), NUM_ITEMS).eval()
    batch = random_batch()

    def summed_loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same negatives
        loss_sum: torch.Tensor = model(batch).loss_sum
        return loss_sum

    exact = summed_loss().item()
    if way == "bf16":
        model = model.bfloat16()
        nearly = summed_loss()
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nearly = summed_loss()
    assert nearly.dtype == torch.float32
    assert nearly.item() == pytest.approx(exact, rel=0.02)
    nearly.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", FAMILIES)
def test_training_lowers_the_loss(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(variant, dropout=0.1, l2_normalize=False), NUM_ITEMS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch: Batch = random_batch()
    losses = []
    for _ in range(30):
        result = model(batch)
        losses.append(result.loss_sum.item() / result.num_targets)
        result.loss_sum.div(result.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
