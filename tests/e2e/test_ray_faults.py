"""On Ray Train: a worker that is told to leave, and one that is stopped."""

import signal
from pathlib import Path

import psutil
import pytest
from commands import losses, records, start, wait_until

RAY = (
    "train",
    "walk.yaml",
    "cluster={workers: 2, max_failures: 1}",
    "faults.step_timeout_s=8",
    "train.max_epochs=2000",
    "train.checkpoint_every_steps=1000000",
    "train.evaluate_every_epochs=1000000",
    "name=faults",
)


def train_workers(command: int) -> list[psutil.Process]:
    """The training workers below a command."""
    return [p for p in psutil.Process(command).children(recursive=True) if p.name().startswith("ray::RayTrainWo")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_notice_costs_no_step_and_no_failure_and_a_stopped_worker_is_restarted(project: Path) -> None:
    """SIGTERM to a worker: saved at the step just done. SIGSTOP to one: the other writes its stacks, Ray restarts."""
    run = project / "runs" / "faults"
    with start(project, *RAY) as command:
        wait_until(lambda: len(losses(run)) >= 20, command)
        train_workers(command.pid)[1].send_signal(signal.SIGTERM)
        wait_until(
            lambda: len(records(run, "start")) == 2 and len(losses(run)) > records(run, "start")[1]["step"] + 20,
            command,
        )
        second = records(run, "start")[1]["step"]
        assert second >= 20
        trained = [line["step"] for line in records(run, "train")]
        assert trained == list(range(1, len(trained) + 1))  # none left out, none trained twice
        assert not (run / "failure.json").exists()

        stopped = train_workers(command.pid)[1]
        stopped.suspend()
        wait_until(lambda: len(records(run, "start")) == 3, command)
        stacks = [path.read_text() for path in (run / "stacks").iterdir()]
        assert any("in all_reduce" in text for text in stacks)
        assert records(run, "start")[2]["step"] == second  # the last checkpoint
        assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
