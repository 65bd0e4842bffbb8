"""The learning rate is a function of the step, and DeepSpeed is told everything explicitly."""

import pytest

from genrec.config import DeepSpeedConfig, OptimizerConfig
from genrec.training.engine import deepspeed_config
from genrec.training.optim import learning_rate


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    return [learning_rate(step, steps, config) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    config = OptimizerConfig(lr=0.4, warmup_steps=4)
    assert rates(config, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


# By hand, with lr 1, 4 steps of warm-up, 12 steps and a floor of 0.2. Half way, at 8, linear and cosine are at 0.6;
# a quarter of the way, cosine is at 0.2 + 0.8 * (1 + sqrt(1/2)) / 2. Steps 15 and 99 are those of a longer run.
BY_HAND = {
    "constant": {4: 1.0, 8: 1.0, 11: 1.0},
    "linear": {4: 1.0, 6: 0.8, 8: 0.6, 10: 0.4, 11: 0.3},
    "cosine": {4: 1.0, 6: 0.882842712, 8: 0.6, 10: 0.317157288},
    "inverse-sqrt": {4: 0.894427191, 8: 2 / 3, 15: 0.5, 99: 0.2},
}


@pytest.mark.parametrize("schedule", list(BY_HAND))
def test_schedules_are_those_computed_by_hand(schedule: str) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule=schedule, min_lr_fraction=0.2)
    assert [learning_rate(step, 12, config) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    found = {step: learning_rate(step, 12, config) for step in BY_HAND[schedule]}
    assert found == pytest.approx(BY_HAND[schedule], abs=1e-8)


@pytest.mark.parametrize(("schedule", "second"), [("linear", 0.75), ("inverse-sqrt", 0.5**0.5)])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule: str, second: float) -> None:
    config = OptimizerConfig(lr=2.0, schedule=schedule)
    assert [learning_rate(step, 4, config) for step in (0, 1)] == pytest.approx([2.0, 2.0 * second])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_falls_from_the_peak_towards_its_floor(schedule: str) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, schedule=schedule, min_lr_fraction=0.1)
    after = rates(config, 110)[10:]
    assert after[0] == 1.0
    assert after == sorted(after, reverse=True)
    assert after[50] == pytest.approx(0.55)
    assert 0.1 < after[-1] < 0.12


def test_clipping_is_always_explicit(tmp_path, write_prepared, make_config) -> None:
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]))
    values = deepspeed_config(config, DeepSpeedConfig(zero_stage=1), workers=2)
    assert values["gradient_clipping"] == 0.0  # DeepSpeed's own default is 1.0
    assert values["gradient_accumulation_steps"] == 1
    assert values["zero_optimization"]["stage"] == 1
