"""A run that is kept on S3 from the log's sequences to the recommendations, on a server that fails now and then."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import kill_when, losses, records, succeed
from s3_server import BUCKET, SECRET, S3Server, s3_server

RUNS = f"s3://{BUCKET}/runs"
PLACES = (f"runs_dir={RUNS}", f"data.prepared=s3://{BUCKET}/prepared/walks")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server whose address and credentials this process, and the commands that it starts, have."""
    with s3_server() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Another machine, as far as genrec can tell: no copies, no files for temporary use."""
    folder.mkdir()
    monkeypatch.setenv("GENREC_COPIES", str(folder / "copies"))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def copy_of_run(folder: Path, name: str) -> Path:
    """The machine's copy of a run directory."""
    (found,) = (folder / "copies").glob(f"*/{name}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prepare_train_resume_and_evaluate_lose_nothing_on_a_storage_that_fails(
    project: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ("train", "walk.yaml", "--launcher", "local", "train.max_epochs=2")
    succeed(project, *local, "name=straight")
    shutil.rmtree(project / "prepared")
    server.faults.fails, server.faults.cuts, server.faults.waits = 0.05, 0.01, 0.02

    first = machine(monkeypatch, tmp_path / "first")
    succeed(project, "prepare", "walk.yaml", PLACES[1])
    kill_when(
        project, *local, *PLACES, ready=lambda: any(len(losses(r)) >= 25 for r in (first / "copies").glob("*/walk"))
    )
    # The first machine is gone, with everything on it.
    shutil.rmtree(first)
    second = machine(monkeypatch, tmp_path / "second")
    assert f"Resuming {RUNS}/walk" in " ".join(succeed(project, *local, *PLACES, timeout_s=400).split())
    run = copy_of_run(second, "walk")
    straight = losses(project / "runs" / "straight")
    assert losses(run).keys() == straight.keys()  # of the first machine's steps too
    np.testing.assert_allclose(list(losses(run).values()), list(straight.values()), rtol=1e-6)
    assert [start["resumed"] for start in records(run, "start")] == [False, True]

    third = machine(monkeypatch, tmp_path / "third")
    evaluated = json.loads(succeed(project, "evaluate", f"{RUNS}/walk", "--json"))
    expected = json.loads((project / "runs" / "straight" / "evaluation.json").read_text())
    assert evaluated["test"]["metrics"] == pytest.approx(expected["test"]["metrics"], abs=1e-9)
    status = json.loads(succeed(project, "status", f"{RUNS}/walk", "--json"))
    assert status["state"] == "finished" and status["last_checkpoint"] == max(straight)
    assert not (project / "prepared").exists()
    assert not list(project.glob("s3:*"))
    assert server.faults.num_failed >= 5 and server.faults.num_cut >= 1, server.faults

    for folder in (project, second, third):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), f"{path} holds a credential"
    assert SECRET in os.environ["AWS_SECRET_ACCESS_KEY"]  # which is what was looked for
