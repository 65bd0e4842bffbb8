"""The task's half: the same numbers and the same export as a validation inside the training, whatever goes wrong."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError
from genrec.inference.export import read_export
from genrec.run_dir import RunDir, run_dir_of
from genrec.training.checkpoint import STATE_FILE, prune_checkpoints, waiting_checkpoints
from genrec.training.checkpoint_list import StoredCheckpoint, checkpoint_rows
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.checkpoint_tools import export_checkpoint
from genrec.training.checkpoint_validation import EXIT_CODE, MAX_TRIES, validate_checkpoint
from genrec.training.local import fit
from genrec.training.start import check_launcher, open_run_directory
from genrec.training.validations import Validated, count_try, read_results, write_result

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory, write_prepared, make_config) -> ExperimentConfig:
    """Of a run that validated inside the training, with a checkpoint for each of its validations."""
    folder = tmp_path_factory.mktemp("validated")
    generator = np.random.default_rng(0)
    prepared = write_prepared(folder / "set", [generator.integers(1, 30, 12).tolist() for _ in range(60)], num_items=30)
    config = make_config(
        prepared,
        "engine={name: torch}",
        "batch={tokens_per_step: 200, micro_batches_per_step: 1}",
        "train={max_epochs: 6, keep_checkpoints: 6}",
        "optimizer.lr=0.05",
        "evaluation.users_per_batch=16",
        "evaluation.max_validation_users=50",
    )
    fit(config, open_run_directory(config, fresh=True, say=lambda _: None), time.time())
    return config


@pytest.fixture
def run(config: ExperimentConfig, tmp_path: Path) -> RunDir:
    """A copy of that run as if nothing had been validated: its checkpoints wait, and it has no export."""
    shutil.copytree(run_dir_of(config).root, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    shutil.rmtree(run.export_path)
    for path in folders(run):
        change_state(
            path, metric=None, best_metric=None, best_step=None, validations_without_gain=0, awaits_validation=True
        )
    return run


def change_state(checkpoint: Path, **changes: object) -> None:
    values = json.loads((checkpoint / STATE_FILE).read_text())
    values["state"] |= changes
    if "validation" in changes:
        values["config"]["evaluation"]["validation"] = values["state"].pop("validation")
    (checkpoint / STATE_FILE).write_text(json.dumps(values))
    listed = json.loads((checkpoint / "rank_00000.json").read_text())
    listed.pop(STATE_FILE, None)  # what was changed by hand has another size
    (checkpoint / "rank_00000.json").write_text(json.dumps(listed))


def stored(run: RunDir) -> CheckpointStore:
    return CheckpointStore(run.checkpoints_path)


def folders(run: RunDir) -> list[Path]:
    return [run.checkpoints_path / name for name in stored(run).names()]


def waiting(run: RunDir) -> list[Path]:
    names = waiting_checkpoints(stored(run), read_results(run.validations_path))
    return [run.checkpoints_path / name for name in names]


def prune(run: RunDir, keep_best: int = 0) -> None:
    prune_checkpoints(stored(run), 1, keep_best, read_results(run.validations_path))


def validate(run: RunDir, checkpoint: Path, timeout_s: float = 60.0) -> Validated:
    return validate_checkpoint(StoredCheckpoint(stored(run), checkpoint.name), run, CPU, timeout_s)


def inline_metrics(config: ExperimentConfig) -> dict[int, dict[str, float]]:
    records = map(json.loads, run_dir_of(config).metrics_path.read_text().splitlines())
    return {record["step"]: record["metrics"] for record in records if record["kind"] == "validation"}


@pytest.mark.parametrize("backwards", [False, True])
def test_the_same_weights_give_the_same_metrics_and_the_same_export(config, run, backwards: bool) -> None:
    expected = inline_metrics(config)
    to_validate = waiting(run)
    assert [int(path.name[5:]) for path in to_validate] == list(expected)
    found = {}
    for checkpoint in reversed(to_validate) if backwards else to_validate:
        result = validate(run, checkpoint)
        assert result.problem is None
        found[result.step] = result.metrics
        assert result.num_users == 50
    assert found == expected  # not nearly: exactly
    assert waiting(run) == []
    best = max(expected, key=lambda step: (expected[step]["ndcg@10"], -step))
    assert 0 < list(expected).index(best) < len(expected) - 1, "a best in the middle is what makes this a test"
    mine, theirs = read_export(run.export_path), read_export(run_dir_of(config).export_path)
    assert mine.info == theirs.info
    assert mine.info["step"] == best
    assert mine.config == theirs.config
    assert mine.items.equals(theirs.items)
    assert mine.state_dict.keys() == theirs.state_dict.keys()
    assert all(torch.equal(mine.state_dict[name], theirs.state_dict[name]) for name in mine.state_dict)


def test_a_result_is_made_once(run) -> None:
    checkpoint = folders(run)[0]
    first = validate(run, checkpoint)
    shutil.rmtree(checkpoint)
    assert validate(run, checkpoint) == first
    assert not list(run.validations_path.glob("*.tries"))


def test_a_kill_between_export_and_result_exports_again(run, monkeypatch) -> None:
    checkpoint = folders(run)[0]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genrec.training.checkpoint_validation.write_result", killed)
    with pytest.raises(KeyboardInterrupt):
        validate(run, checkpoint)
    monkeypatch.undo()
    assert read_export(run.export_path).info["step"] == int(checkpoint.name[5:])
    assert waiting(run)[0] == checkpoint
    assert validate(run, checkpoint).problem is None
    assert waiting(run)[0] != checkpoint


@pytest.mark.parametrize("metric_name", ["ndcg@10", "hr@10"])
def test_a_better_metric_of_the_same_protocol_alone_keeps_it_from_being_exported(run, metric_name: str) -> None:
    before = Validated(
        step=1, epoch=0.1, elapsed_s=1.0, saved_s=1.0, done_s=1.0, protocol=[metric_name, True, 50], metric=1.0
    )
    write_result(run.validations_path, before)
    result = validate(run, folders(run)[0])
    assert result.protocol == ["ndcg@10", True, 50]
    assert run.export_path.exists() == (metric_name != "ndcg@10")


def test_it_is_measured_as_the_run_measures_now(config, run) -> None:
    """The metric was changed while checkpoints waited: the old metric must not decide about the export any more."""
    evaluation = config.evaluation.model_copy(update={"metric": "hr@10", "max_validation_users": 20})
    RunDir(run.root).create(config.model_copy(update={"evaluation": evaluation}))
    for path in folders(run):
        change_state(path, best_metric=1.0, best_step=0)  # by the old metric
    result = validate(run, folders(run)[0])
    assert result.protocol == ["hr@10", True, 20]
    assert (result.metric, result.num_users) == (result.metrics["hr@10"], 20)
    info = read_export(run.export_path).info
    assert (info["metric"], info["value"]) == ("hr@10", result.metric)


def test_a_damaged_checkpoint_is_a_problem_and_not_an_end(run) -> None:
    first, second, *_ = folders(run)
    content = bytearray((first / "torch.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (first / "torch.pt").write_bytes(bytes(content))
    result = validate(run, first)
    assert "torch.pt does not have the SHA-256" in (result.problem or "")
    assert (result.metric, result.epoch) == (None, 1.0)
    assert read_results(run.validations_path) == {result.step: result}
    assert not run.export_path.exists()
    assert validate(run, second).problem is None
    shutil.rmtree(second)
    gone = folders(run)[-1]
    shutil.rmtree(gone)
    assert "it is incomplete" in (validate(run, gone).problem or "")


def test_a_process_that_is_killed_again_and_again_is_given_up(run) -> None:
    checkpoint = folders(run)[0]
    step = int(checkpoint.name[5:])
    for _ in range(MAX_TRIES):
        count_try(run.validations_path, step)
    assert "was killed 3 times" in (validate(run, checkpoint).problem or "")


def test_one_that_takes_too_long_ends_itself_and_says_so(run) -> None:
    checkpoint = folders(run)[0]
    code = (
        "import sys, threading, torch; from pathlib import Path; from genrec.run_dir import RunDir\n"
        "import genrec.training.checkpoint_validation as module\n"
        "from genrec.training.checkpoint_store import CheckpointStore\n"
        "module.evaluate = lambda *_, **__: threading.Event().wait()\n"
        "run = RunDir(Path(sys.argv[2]))\n"
        "checkpoint = module.StoredCheckpoint(CheckpointStore(run.checkpoints_path), sys.argv[1])\n"
        "module.validate_checkpoint(checkpoint, run, torch.device('cpu'), 0.5)\n"
    )
    command = [sys.executable, "-c", code, checkpoint.name, str(run.root)]
    assert subprocess.run(command, timeout=120, check=False).returncode == EXIT_CODE
    assert "longer than evaluation.validation_timeout_s (0.5 s)" in (validate(run, checkpoint).problem or "")


def names(run: RunDir) -> list[int]:
    return [int(path.name[5:]) for path in folders(run)]


def test_what_waits_is_kept_and_what_came_late_decides_what_is_best(config, run) -> None:
    steps = names(run)
    for path in folders(run):
        change_state(path, validation="background")
    prune(run, keep_best=1)
    assert names(run) == steps
    results = [validate(run, path) for path in waiting(run)[:3]]
    best = max(results, key=lambda result: (result.metric, -result.step))
    rows = {
        row.step: row for row in checkpoint_rows(stored(run), digests=False, results=read_results(run.validations_path))
    }
    assert [rows[result.step].metric for result in results] == [result.metric for result in results]
    assert rows[steps[-1]].metric is None
    assert rows[steps[-1]].best_metric == best.metric
    export_checkpoint(
        StoredCheckpoint(stored(run), f"step_{best.step:08d}"), run, config, run.root / "exports" / "best"
    )
    assert read_export(run.root / "exports" / "best").info["value"] == best.metric
    prune(run, keep_best=1)
    assert names(run) == sorted({best.step, *steps[3:]})
    # The run has gone on without background validations: nobody will come for those that wait.
    change_state(folders(run)[-1], validation="inline")
    prune(run)
    assert names(run) == steps[-1:]


def test_the_local_launcher_refuses(config) -> None:
    background = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"validation": "background"})}
    )
    check_launcher(config, "local")
    check_launcher(background, "ray")
    with pytest.raises(ConfigError, match=r"needs the Ray launcher.*evaluation.validation=inline"):
        check_launcher(background, "local")
