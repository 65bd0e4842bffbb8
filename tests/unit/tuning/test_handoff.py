"""Population-based training's hand-off: weights, optimizer state and cursor are the donor's."""

import json
import shutil
import time

import numpy as np
import pytest

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, StorageError
from genrec.run_dir import RunDir, read_metrics, run_dir_of
from genrec.training.checkpoint import by_digest, info_in, read_info
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name
from genrec.training.local import fit
from genrec.training.start import open_run_directory
from genrec.tuning import handoff
from genrec.tuning.handoff import check_mutable, hand_over


def named(config: ExperimentConfig, name: str, lr: float) -> ExperimentConfig:
    optimizer = config.optimizer.model_copy(update={"lr": lr})
    return config.model_copy(update={"name": name, "optimizer": optimizer})


def trained(config: ExperimentConfig) -> RunDir:
    run = open_run_directory(config, fresh=False, say=lambda _: None)
    fit(config, run, time.time())
    return run


def losses(run: RunDir) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run.metrics_path) if line["kind"] == "train"}


@pytest.fixture(scope="module")
def finished_donor(tmp_path_factory, write_prepared, make_config) -> tuple[ExperimentConfig, RunDir]:
    folder = tmp_path_factory.mktemp("donor")
    prepared = write_prepared(folder / "prepared", np.random.default_rng(0).integers(1, 31, (40, 8)).tolist())
    train = "train={max_epochs: 3, log_every_steps: 1, keep_checkpoints: 1000000}"
    config = make_config(prepared, train, "engine={name: torch}", "batch.tokens_per_step=80")
    return config, trained(named(config, "0001", 0.01))


@pytest.fixture
def donor(finished_donor, tmp_path) -> tuple[ExperimentConfig, RunDir]:
    """A copy of it that a test may do anything with."""
    config, run = finished_donor
    shutil.copytree(run.root, tmp_path / "runs" / run.root.name)
    return config.model_copy(update={"runs_dir": str(tmp_path / "runs")}), RunDir(tmp_path / "runs" / run.root.name)


def test_the_new_run_goes_on_as_the_donor_did(donor) -> None:
    """Same settings: every later loss is the donor's to the bit, which weights, moments and cursor decide together."""
    config, donor_run = donor
    steps = [int(name.removeprefix("step_")) for name in CheckpointStore(donor_run.checkpoints_path).names()]
    middle = steps[0]
    assert 0 < middle < steps[-1]

    run = hand_over(donor_run.root, middle, named(config, "0002-1", 0.01))
    handed, store = run.checkpoints_path / checkpoint_name(middle), CheckpointStore(run.checkpoints_path)
    assert store.names() == [checkpoint_name(middle)]
    assert by_digest(store, checkpoint_name(middle)) is None
    ours, theirs = info_in(handed).state, read_info(CheckpointStore(donor_run.checkpoints_path), handed.name).state
    assert (ours.step, ours.epochs_done) == (theirs.step, theirs.epochs_done)
    assert (ours.best_metric, theirs.best_metric is None) == (None, False)  # it has a best of its own to find
    files = {path.name for path in handed.iterdir()} - {"state.json", "rank_00000.json"}
    assert "torch.pt" in files
    for name in files:
        assert (handed / name).read_bytes() == (donor_run.checkpoints_path / handed.name / name).read_bytes()

    assert trained(named(config, "0002-1", 0.01)).root == run.root
    straight, continued = losses(donor_run), losses(run)
    assert min(continued) > middle
    assert continued == {step: loss for step, loss in straight.items() if step > middle}


def test_with_another_setting_the_first_step_is_the_same_and_later_ones_are_not(donor) -> None:
    config, donor_run = donor
    middle = int(CheckpointStore(donor_run.checkpoints_path).names()[0].removeprefix("step_"))
    changed = named(config, "0003-1", 0.05)
    hand_over(donor_run.root, middle, changed)
    straight, continued = losses(donor_run), losses(trained(changed))
    assert continued[middle + 1] == straight[middle + 1]  # the loss before the first update with the new rate
    assert continued[middle + 2] != straight[middle + 2]
    saved = json.loads((run_dir_of(changed).root / "checkpoints" / checkpoint_name(middle) / "state.json").read_text())
    assert saved["config"]["optimizer"]["lr"] == 0.05


def test_a_checkpoint_that_is_not_complete_is_waited_for_and_then_refused(donor, monkeypatch) -> None:
    config, donor_run = donor
    name = CheckpointStore(donor_run.checkpoints_path).names()[0]
    (donor_run.checkpoints_path / name / "rank_00000.json").unlink()
    monkeypatch.setattr(handoff, "WAIT_S", 0.3)
    with pytest.raises(StorageError, match=r"was not complete within"):
        hand_over(donor_run.root, int(name.removeprefix("step_")), named(config, "0002-1", 0.01))
    assert not run_dir_of(named(config, "0002-1", 0.01)).root.exists()


def test_what_a_killed_hand_off_left_is_replaced(donor) -> None:
    config, donor_run = donor
    step = int(CheckpointStore(donor_run.checkpoints_path).names()[0].removeprefix("step_"))
    new = named(config, "0002-1", 0.01)
    shutil.copytree(donor_run.root, run_dir_of(new).root)
    hand_over(donor_run.root, step, new)
    assert CheckpointStore(run_dir_of(new).checkpoints_path).names() == [checkpoint_name(step)]


@pytest.mark.parametrize("key", ["model.dim", "batch.tokens_per_step", "optimizer.name", "seed"])
def test_settings_that_decide_what_a_step_is_cannot_change(key) -> None:
    check_mutable(["optimizer.lr", "loss.temperature"])
    with pytest.raises(ConfigError, match=f"cannot change {key} while a trial trains"):
        check_mutable(["optimizer.lr", key])
