"""A real Ray run whose workers are killed three times in mid-epoch: its window log has each window once per epoch."""

import json
from collections import Counter
from pathlib import Path

import psutil
import pytest
from commands import losses, records, start, wait_until

from genrec.run_dir import RunDir
from genrec.training.window_log import trained_windows

KILLS = 3
EPOCHS = 24
COMMAND = (
    "train",
    "walk.yaml",
    "name=cursor",
    "cluster.workers=2",
    f"train.max_epochs={EPOCHS}",
    "train.checkpoint_every_steps=13",
    "train.evaluate_every_epochs=1000",
    "tracking.log_windows=true",
    f"cluster.max_failures={KILLS}",
)


def train_worker(command: int) -> psutil.Process | None:
    """A training worker below a command, or None while there is none."""
    for process in psutil.Process(command).children(recursive=True):
        if process.name().startswith("ray::RayTrainWo"):
            return process
    return None


def steps_written(run: Path) -> int:
    """Steps of the run that rank 0 has logged."""
    return max(losses(run), default=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_kills_leave_every_window_trained_once_per_epoch(project: Path) -> None:
    run = project / "runs" / "cursor"
    with start(project, *COMMAND) as command:
        for kill in range(KILLS):
            goal = (steps_written(run) if kill else 0) + 60
            wait_until(
                lambda kill=kill, goal=goal: len(records(run, "start")) == kill + 1 and steps_written(run) >= goal,
                command,
            )
            victim = train_worker(command.pid)
            assert victim is not None
            victim.kill()
        command.wait(600)
        assert command.returncode == 0, (project / "started.log").read_text()[-3000:]

    starts = records(run, "start")
    assert [line["resumed"] for line in starts] == [False] + [True] * KILLS
    written = [json.loads(text) for path in (run / "windows").glob("*.jsonl") for text in path.read_text().splitlines()]
    counted = trained_windows(RunDir(run))
    assert len(written) > len(counted)  # some steps were trained, lost with a worker, and trained again
    assert [(line["step"], line["part"]) for line in counted] == [
        (step, part) for step in range(starts[-1]["end_step"]) for part in range(2)
    ]
    # 1,000 walks of 15 events: 13 of them train, in one window of 12 tokens from the first event on.
    windows = Counter(
        (line["epoch"], u, s) for line in counted for u, s in zip(line["users"], line["starts"], strict=True)
    )
    assert windows == Counter((epoch, user, 0) for epoch in range(EPOCHS) for user in range(1_000))
