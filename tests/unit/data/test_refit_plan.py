"""A refit trains on everything that comes before the test target, and on nothing after it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.config import ExperimentConfig
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.errors import ConfigError

REFIT = "sequence.train_on=train+validation"
SEQUENCES = [[user * 10 + place for place in range(1, 4 + user % 5)] for user in range(40)]  # no item comes twice


def targets(config: ExperimentConfig) -> Counter[int]:
    """How often each item is a target in one epoch."""
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    batches = worker_batches(local_tables(plan, **span), **span, parts=config.batch.micro_batches_per_step)
    return Counter(item for _, batch in batches for item in batch.targets.tolist())


def test_the_validation_event_is_a_target_and_the_test_event_is_not(
    tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> None:
    folder = write_prepared(tmp_path / "set", SEQUENCES, num_items=400)
    assert targets(make_config(folder)) == Counter(item for items in SEQUENCES for item in items[1:-2])
    assert targets(make_config(folder, REFIT)) == Counter(item for items in SEQUENCES for item in items[1:-1])


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("train.patience=3", "train.patience is 3; set it to null"),
        ("evaluation.validation=background", "evaluation.validation is background; set it to inline"),
        (
            "data.split={name: global-time, validation_from: 5, test_from: 9}",
            "data.split.name is global-time; set it to leave-one-out",
        ),
    ],
)
def test_what_needs_validation_is_refused(
    also: str, said: str, tmp_path: Path, make_config: Callable[..., ExperimentConfig]
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(tmp_path, REFIT, also)
