"""Seeding by micro-batch, and steps that are left out."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from step_guard_context import context_of

from genrec.data.batch import MicroBatchId, batch_from_arrays
from genrec.data.stream import Place
from genrec.errors import RunError
from genrec.training.clock import StepClock
from genrec.training.engine import MicroLoss
from genrec.training.loop import seed_micro_batch, train
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard


def draw(seed: int, *micro_batch_id: int) -> float:
    seed_micro_batch(seed, MicroBatchId(*micro_batch_id))
    return torch.rand(1).item()


def test_randomness_belongs_to_the_micro_batch() -> None:
    assert draw(1, 0, 0, 0) == draw(1, 0, 0, 0)
    ids = [(epoch, chunk, position) for epoch in range(4) for chunk in range(4) for position in range(8)]
    assert len({draw(seed, *i) for seed in (1, 2) for i in ids}) == 2 * len(ids)


class ConstantEngine:
    """Engine whose loss and gradient are given; it counts the updates that it may apply."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)
        self.model = torch.nn.Linear(1, 1)
        self.clock = StepClock(torch.device("cpu"))
        self.num_updates = 0
        self.products: list[str] = []

    def micro_step(self, *_: object, last: bool, **__: object) -> MicroLoss:
        self.products.append(torch.get_float32_matmul_precision())
        loss = self.losses.pop(0)
        self.num_updates += last and self.before_update(loss)
        return MicroLoss(loss, {"item": loss / 2, "action": loss / 4})


class BrokenEngine(ConstantEngine):
    """Engine whose step fails."""

    def micro_step(self, *_: object, last: bool, **__: object) -> MicroLoss:
        raise ZeroDivisionError


class KeepMeter:
    """Hook that writes down what the meter has counted."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, int]] = []
        self.num_left_out: list[int] = []
        self.products: list[str] = []

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        self.seen.append((state.step, meter.loss_sum, meter.num_targets))
        self.num_left_out.append(state.num_left_out)
        self.products.append(torch.get_float32_matmul_precision())


@pytest.fixture
def run_steps(tmp_path, write_prepared, make_config) -> Callable[..., KeepMeter]:
    """`run_steps(engine, override)` trains a step of one micro-batch for every loss; what a hook saw of it."""
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])

    def run(engine: ConstantEngine, *overrides: str) -> KeepMeter:
        config = make_config(prepared, "batch.micro_batches_per_step=1", *overrides)
        batch = batch_from_arrays(torch.tensor([1]).numpy(), torch.tensor([0, 1]).numpy())
        batch = dataclasses.replace(batch, step_targets=3, step_weight=3.0)
        hook, state, num_steps = KeepMeter(), TrainState(), len(engine.losses)
        batches = [(Place(step, 0, 0.5, False), batch) for step in range(num_steps)]
        guard = StepGuard(config, context_of(tmp_path), state)
        train(config, engine, batches, [hook], state, num_steps, guard)
        return hook

    return run


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_by_name(run_steps, loss: float) -> None:
    engine = ConstantEngine(1.0, loss)
    with pytest.raises(RunError, match=r"in step 1 is (nan|inf); lower optimizer.lr"):
        run_steps(engine)
    assert engine.num_updates == 1


def test_a_step_that_is_left_out_counts_as_a_step_and_not_as_a_loss(run_steps) -> None:
    engine = ConstantEngine(1.0, float("nan"), 2.0)
    seen = run_steps(engine, "faults.on_poisoned_step=skip")
    assert engine.num_updates == 2
    assert seen.seen == [(1, 1.0, 3), (2, 1.0, 3), (3, 3.0, 6)]
    assert seen.num_left_out == [0, 1, 1]


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_products_are_as_exact_as_the_config_says_in_steps_alone(run_steps, setting: str) -> None:
    engine = ConstantEngine(1.0, 2.0)
    seen = run_steps(engine, f"engine.matmul_precision={setting}")
    assert engine.products == [setting, setting]
    assert seen.products == ["highest", "highest"]  # where validation happens
    with pytest.raises(ZeroDivisionError):
        run_steps(BrokenEngine(1.0), f"engine.matmul_precision={setting}")
    assert torch.get_float32_matmul_precision() == "highest"
