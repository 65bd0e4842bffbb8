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
