"""Validation in the background on Ray: the same numbers as inline, also when something is killed meanwhile."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from commands import genrec, records, refused, start, succeed, wait_until

from genrec.inference.export import read_export

INLINE = ("train", "walk.yaml", "cluster.threads_per_worker=1", "name=inline", "--launcher", "local")
BACKGROUND = ("train", "walk.yaml", "cluster.threads_per_worker=1", "evaluation.validation=background")


def metrics_of(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["metrics"] for line in records(run, "validation")}


def assert_same_results(background: Path, inline: Path) -> None:
    """Metrics of every validation, the best model and the final evaluation are those of a run that validates inline."""
    assert metrics_of(background) == metrics_of(inline)
    (one, *_), (other, *_) = evaluations = [
        sorted(json.loads((run / "evaluation.json").read_text()).items()) for run in (background, inline)
    ]
    assert one[0] == other[0] == "test"
    for (_, mine), (_, theirs) in zip(*evaluations, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    mine, theirs = read_export(background / "export"), read_export(inline / "export")
    assert mine.info == theirs.info
    assert all(torch.equal(mine.state_dict[name], theirs.state_dict[name]) for name in theirs.state_dict)


def waiting(run: Path) -> list[str]:
    """Checkpoints that wait for a validation without a result."""
    states = {path.parent.name: json.loads(path.read_text()) for path in run.glob("checkpoints/step_*/state.json")}
    done = {path.stem for path in run.glob("validations/*.json")}
    return sorted(name for name, info in states.items() if info["state"]["awaits_validation"] and name not in done)


def validations_below(command: int) -> list[psutil.Process]:
    """Processes below a command in which a validation has begun."""
    found = []
    for process in psutil.Process(command).children(recursive=True):
        try:
            if process.name().startswith("ray::run_valid"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_background_and_inline_agree(project: Path) -> None:
    runs = project / "runs"
    succeed(project, *INLINE)
    said = succeed(project, *BACKGROUND, "name=background", timeout_s=400)
    assert "s later)" in said
    assert_same_results(runs / "background", runs / "inline")
    lines = records(runs / "background", "validation")
    assert all(line["background"] and line["seconds_late"] > 0 for line in lines)
    assert [path.stem for path in sorted((runs / "background" / "validations").glob("step_*"))] == [
        f"step_{line['step']:08d}" for line in lines
    ]
    assert waiting(runs / "background") == []
    # The run knows of no way to validate in the background without Ray, and says so before it deletes anything.
    message = refused(project, *BACKGROUND, "name=background", "--launcher", "local", "--fresh")
    assert "needs the Ray launcher" in message
    assert (runs / "background" / "export").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_kills_while_validations_wait_change_nothing(project: Path) -> None:
    """The command is killed with validations pending, then a validation itself, twice; then all goes on."""
    longer = ("train.max_epochs=6", "train.keep_checkpoints=1")
    succeed(project, *INLINE, *longer, timeout_s=500)
    command = (*BACKGROUND, *longer, "name=killed")
    run = project / "runs" / "killed"
    with start(project, *command) as process:
        wait_until(lambda: len(waiting(run)) >= 2, process, timeout_s=400)
    left = waiting(run)
    assert len(left) >= 2
    assert not (run / "evaluation.json").exists()
    with start(project, *command) as process:
        for _ in range(2):
            wait_until(lambda: bool(validations_below(process.pid)), process, timeout_s=400)
            for victim in validations_below(process.pid):
                victim.kill()
        process.wait(700)
        assert process.returncode == 0, (project / "started.log").read_text()[-3_000:]
    assert records(run, "validation_failed") == []
    assert_same_results(run, project / "runs" / "inline")
    assert waiting(run) == []
    assert len(list(run.glob("checkpoints/step_*"))) == 1  # what waited is no longer kept


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_validations_that_take_too_long_are_given_up_and_made_later(project: Path) -> None:
    succeed(project, *INLINE, timeout_s=500)
    command = (*BACKGROUND, "train.keep_checkpoints=9", "name=slow")
    run = project / "runs" / "slow"
    done = genrec(project, *command, "evaluation.validation_timeout_s=0.001", timeout_s=500)
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "runs/slow has succeeded (step" in message
    assert "longer than evaluation.validation_timeout_s (0.001 s)" in message
    assert [line["step"] for line in records(run, "validation_failed")] == list(metrics_of(project / "runs" / "inline"))
    assert waiting(run) == []
    succeed(project, *command, timeout_s=400)
    assert_same_results(run, project / "runs" / "inline")
