"""What a resumed run may change by itself, on request, and never."""

from typing import Any

import pytest

from genrec.config import ExperimentConfig, config_from_dict
from genrec.errors import RunError
from genrec.overrides import apply_overrides
from genrec.training.resume_guard import FREE, ON_REQUEST, check_changes, keep_packing

BASE: dict[str, Any] = {
    "name": "run",
    "data": {"source": {"name": "synthetic"}, "prepared": "unused"},
    "batch": {"micro_batches_per_step": 4},
    "model": {"name": "sasrec"},
    "loss": {"name": "full-softmax"},
    "train": {"max_steps": 100},
}


def config(*overrides: str) -> ExperimentConfig:
    return config_from_dict(apply_overrides(BASE, list(overrides)))


@pytest.mark.parametrize(
    "change",
    [
        "cluster.workers=2",
        "cluster.workers=[1, 2]",
        "engine.zero_stage=3",
        "engine={name: torch}",
        "train.log_every_steps=1",
        "tracking.wandb=true",
    ],
)
def test_topology_and_logging_change_freely(change: str) -> None:
    taken = check_changes("runs/run", config(), config(change))
    assert taken
    assert all("->" in text for text in taken)


@pytest.mark.parametrize("change", ["train.max_steps=200", "optimizer.lr=0.5", "loss.temperature=0.1"])
def test_the_rest_of_the_run_changes_on_request(change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(RunError, match=rf"add --allow-change {key} to go on"):
        check_changes("runs/run", config(), config(change))
    assert len(check_changes("runs/run", config(), config(change), [key])) == 1


@pytest.mark.parametrize(
    "change",
    [
        "seed=2",
        "model.dim=32",
        "sequence.max_length=20",
        "batch.tokens_per_step=512",
        "batch.packed_parts=8",
        "optimizer.name=muon",
        "optimizer.table.name=rowwise-adagrad",
        "loss.learn_temperature=true",
    ],
)
def test_what_a_step_is_never_changes(change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(RunError, match="use another name") as caught:
        check_changes("runs/run", config(), config(change))
    assert "--allow-change" not in str(caught.value)
    with pytest.raises(RunError, match=f"--allow-change {key} is not possible"):
        check_changes("runs/run", config(), config(change), [key])


def test_the_steps_stay_packed_for_the_first_number_of_micro_batches() -> None:
    first = config()
    second = keep_packing(first, config("batch.micro_batches_per_step=8"))
    assert (second.batch.micro_batches_per_step, second.batch.packed_parts) == (8, 4)
    assert check_changes("runs/run", first, second) == ("batch.micro_batches_per_step: 4 -> 8",)
    third = keep_packing(second, config("batch.micro_batches_per_step=2"))
    assert third.batch.packed_parts == 4
    assert keep_packing(third, config()) == first


def test_another_packing_is_another_run() -> None:
    named = keep_packing(config(), config("batch.packed_parts=8"))
    with pytest.raises(RunError, match="use another name"):
        check_changes("runs/run", config(), named)


def test_only_what_is_refused_is_listed() -> None:
    with pytest.raises(RunError) as caught:
        check_changes("runs/run", config(), config("cluster.workers=2", "seed=2", "train.max_steps=9"))
    assert "seed: 1 -> 2" in str(caught.value)
    assert "train.max_steps: 100 -> 9" in str(caught.value)
    assert "cluster.workers" not in str(caught.value)


def test_one_permission_does_not_cover_another() -> None:
    with pytest.raises(RunError, match=r"optimizer\.lr"):
        check_changes("run", config(), config("train.max_steps=9", "optimizer.lr=1"), ["train.max_steps"])


def test_heads_stay_what_they_are() -> None:
    with pytest.raises(RunError, match=r"heads\.action\.weight: None -> 0\.2"):
        check_changes("run", config(), config("heads={action: {}}"))
    with pytest.raises(RunError, match="--allow-change heads is not possible"):
        check_changes("run", config(), config("heads={action: {}}"), ["heads"])


def test_every_name_is_a_setting() -> None:
    values = config().model_dump()
    values["engine"] |= {"precision": "", "zero_stage": 0, "offload_optimizer": False}
    values["semantic_ids"] = {"path": ""}
    for name in (*FREE, *ON_REQUEST):
        section: Any = values
        for part in name.split("."):
            assert part in section, name
            section = section[part]
