"""Checkpoints of a run on Ray Train in a storage with a URI: killed workers, and a storage that is gone for a while."""

import json
from pathlib import Path

import psutil
import pytest
from commands import losses, records, refused, start, succeed, wait_until

RAY = (
    "train",
    "walk.yaml",
    "name=stored",
    "cluster={workers: 2, max_failures: 1}",
    "train.max_epochs=12",
    "train.evaluate_every_epochs=1000",
)


def steps(store: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in store.glob("step_*") if (path / "finished").exists())


def kill_a_worker(command: int) -> None:
    workers = [p for p in psutil.Process(command).children(recursive=True) if p.name().startswith("ray::RayTrainWo")]
    workers[1].kill()


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_a_run_with_a_storage_goes_on_after_a_killed_worker_and_a_storage_that_was_gone(project: Path) -> None:
    run, store = project / "runs" / "stored", project / "bucket" / "stored"
    command_line = (*RAY, f"train.checkpoint_dir={(project / 'bucket').as_uri()}")
    with start(project, *command_line) as command:
        wait_until(lambda: len(steps(store)) >= 1 and len(losses(run)) >= 50, command, timeout_s=900)
        kill_a_worker(command.pid)
        wait_until(lambda: len(records(run, "start")) == 2, command, timeout_s=900)
        resumed_at = records(run, "start")[1]["step"]
        assert resumed_at >= 20
        assert resumed_at % 20 == 0
        wait_until(lambda: max(losses(run)) >= resumed_at + 50, command, timeout_s=900)
        kill_a_worker(command.pid)  # one failure more than the run may have
        command.wait(300)
        assert command.returncode == 1, (project / "started.log").read_text()[-3000:]
    assert not (run / "checkpoints").exists()
    listed = json.loads(succeed(project, "checkpoints", "runs/stored", "--verify", "--json"))
    newest = max(row["step"] for row in listed if row["status"] == "counts")

    store.rename(project / "away")
    store.write_text("a file where the storage was")
    message = refused(project, *command_line, exit_code=1)
    assert "The checkpoint storage" in message
    assert "same command" in message
    store.unlink()
    (project / "away").rename(store)

    succeed(project, *command_line, timeout_s=900)
    assert records(run, "start")[-1]["step"] == newest
    end = records(run, "start")[0]["end_step"]
    assert sorted(losses(run)) == list(range(1, end + 1))
    assert steps(store) == [end - end % 20 if end % 20 else end - 20, end]
    succeed(project, "checkpoints", "runs/stored", "--export", "latest")
    assert (run / "exports" / f"step_{end:08d}" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_a_storage_that_fails_costs_restarts_and_then_ends_the_run_with_a_sentence(project: Path) -> None:
    run, store = project / "runs" / "stored", project / "bucket" / "stored"
    overrides = (
        "engine={name: torch}",
        f"train.checkpoint_dir={(project / 'bucket').as_uri()}",
        "train.max_epochs=100",
    )
    with start(project, *RAY, *overrides) as command:
        wait_until(lambda: len(steps(store)) >= 1, command, timeout_s=900)
        store.rename(project / "away")
        store.write_text("a file where the storage was")
        command.wait(300)
    said = " ".join((project / "started.log").read_text().split())
    assert command.returncode == 1, said[-3000:]
    assert "Training failed after 1 restarts" in said
    assert str(store) in said.rpartition("Training failed")[2]  # Ray writes there too, so either may be the last
    assert not (run / "failure.json").exists()  # nothing that a restart could not mend
    store.unlink()
    (project / "away").rename(store)
    newest = max(steps(store))
    succeed(project, *RAY, *overrides, "train.max_epochs=12", "--allow-change", "train.max_epochs", timeout_s=900)
    assert records(run, "start")[-1]["step"] >= newest
