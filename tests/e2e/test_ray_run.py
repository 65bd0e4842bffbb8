"""The same run on Ray Train with two workers and DeepSpeed, killed twice."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import losses, records, start, succeed, wait_until

RAY = ("train", "walk.yaml", "cluster.workers=2", "engine={zero_stage: 2}", "train.max_epochs=24")


def train_worker(command: int) -> int | None:
    """Process id of a training worker below a command, or None while there is none."""
    for process in psutil.Process(command).children(recursive=True):
        if process.name().startswith("ray::RayTrainWo"):
            return process.pid
    return None


@pytest.mark.timeout(600)
def test_a_killed_worker_is_restarted_and_a_killed_command_resumes(project: Path) -> None:
    """SIGKILL to a worker, then to the command: every step is trained as in the run that nobody touched."""
    run = project / "runs" / "killed"
    with start(project, *RAY, "name=killed") as command:
        wait_until(lambda: len(losses(run)) >= 60, command)
        victim = train_worker(command.pid)
        assert victim is not None
        psutil.Process(victim).kill()
        # The command goes on by itself: Ray Train starts the workers again from the last checkpoint.
        wait_until(lambda: len(records(run, "start")) == 2 and len(losses(run)) >= 200, command)
        command.kill()
    assert not (run / "evaluation.json").exists()
    assert "Resuming" in succeed(project, *RAY, "name=killed")
    starts = records(run, "start")
    assert [line["resumed"] for line in starts] == [False, True, True]
    assert 0 < starts[1]["step"] < starts[2]["step"]

    succeed(project, *RAY, "name=straight")
    straight = losses(project / "runs" / "straight")
    assert losses(run).keys() == straight.keys()
    # Two workers add their gradients in an order that gloo does not fix: fp32, over 500 steps.
    np.testing.assert_allclose(list(losses(run).values()), list(straight.values()), rtol=1e-3)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["test"]["metrics"]["hr@10"] > 0.9
    assert evaluation["test"]["num_users"] == 1_000
