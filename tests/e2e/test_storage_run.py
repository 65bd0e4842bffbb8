"""A run that is kept on S3 from the log's sequences to the recommendations, on a server that fails now and then."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import losses, records, start, succeed, wait_until
from s3_server import BUCKET, SECRET, S3Server, s3_server

from genrec.cluster.ray_metrics import exported_names
from genrec.training.checkpoint import latest_checkpoint
from genrec.training.checkpoint_store import CheckpointStore

RUNS = f"s3://{BUCKET}/runs"
LONG_S = 900
"""For a busy machine; the commands take seconds on an idle one."""
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
@pytest.mark.timeout(2_400)
def test_prepare_train_resume_and_evaluate_lose_nothing_on_a_storage_that_fails(
    project: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ("train", "walk.yaml", "--launcher", "local", "train.max_epochs=2")
    succeed(project, *local, "name=straight", timeout_s=LONG_S)
    shutil.rmtree(project / "prepared")
    server.faults.fails, server.faults.cuts, server.faults.waits = 0.05, 0.01, 0.02

    first = machine(monkeypatch, tmp_path / "first")
    succeed(project, "prepare", "walk.yaml", PLACES[1], timeout_s=LONG_S)
    stored = CheckpointStore(f"{RUNS}/walk", "checkpoints")
    with start(project, *local, *PLACES) as train:
        wait_until(lambda: latest_checkpoint(stored) is not None, train, timeout_s=LONG_S)
        train.kill()
    # The first machine is gone, with everything on it.
    shutil.rmtree(first)
    second = machine(monkeypatch, tmp_path / "second")
    assert f"Resuming {RUNS}/walk" in " ".join(succeed(project, *local, *PLACES, timeout_s=LONG_S).split())
    run = copy_of_run(second, "walk")
    straight = losses(project / "runs" / "straight")
    assert losses(run).keys() == straight.keys()  # of the first machine's steps too
    np.testing.assert_allclose(list(losses(run).values()), list(straight.values()), rtol=1e-6)
    assert [start["resumed"] for start in records(run, "start")] == [False, True]

    third = machine(monkeypatch, tmp_path / "third")
    evaluated = json.loads(succeed(project, "evaluate", f"{RUNS}/walk", "--json", timeout_s=LONG_S))
    expected = json.loads((project / "runs" / "straight" / "evaluation.json").read_text())
    assert evaluated["test"]["metrics"] == pytest.approx(expected["test"]["metrics"], abs=1e-9)
    status = json.loads(succeed(project, "status", f"{RUNS}/walk", "--json", timeout_s=LONG_S))
    assert status["state"] == "finished" and status["last_checkpoint"] == max(straight)
    assert not (project / "prepared").exists()
    assert not list(project.glob("s3:*"))
    assert server.faults.num_failed >= 5 and server.faults.num_cut >= 1, server.faults

    for folder in (project, second, third):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), f"{path} holds a credential"
    assert SECRET in os.environ["AWS_SECRET_ACCESS_KEY"]  # which is what was looked for


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_head(metrics_port: int) -> Iterator[str]:
    """A cluster of one node that exports its metrics; its address."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=3",
    ]
    command += [f"--metrics-export-port={metrics_port}", "--include-dashboard=false", "--disable-usage-stats"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_metrics_report_interval_ms": "1000"},
        start_new_session=True,
    )

    def answers() -> bool:
        with socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def measured(port: int) -> dict[str, str]:
    """Labels of genrec's metrics by name, as Prometheus would find them now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    except OSError:
        return {}
    return dict(re.findall(r"^(ray_genrec_\w+)\{(.*?)\} ", page, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(2_400)
def test_ray_trains_and_recommends_from_s3_and_exports_its_metrics(
    project: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "machine")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else `ray start` takes over a token that the user has
    monkeypatch.delenv("TMPDIR")  # the sockets of Ray need a short path
    server.faults.fails = 0.05
    metrics_port = free_port()
    with ray_head(metrics_port) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with start(
            project, "train", "walk.yaml", *PLACES, "train.max_epochs=12", "train.evaluate_every_epochs=20"
        ) as train:
            wait_until(lambda: set(exported_names()) <= measured(metrics_port).keys(), train, timeout_s=LONG_S)
            labels = measured(metrics_port)
            train.wait(LONG_S)
            assert train.returncode == 0, (project / "started.log").read_text()[-3000:]
        for name in exported_names():
            assert 'run="walk"' in labels[name] and 'rank="0"' in labels[name], labels[name]
        said = succeed(project, "recommend", f"{RUNS}/walk", "--k", "5", timeout_s=LONG_S)
    assert "Recommendations" in said
    machine(monkeypatch, tmp_path / "another")
    status = json.loads(succeed(project, "status", f"{RUNS}/walk", "--json", timeout_s=LONG_S))
    assert status["state"] == "finished"
    parts = sorted((copy_of_run(tmp_path / "another", "walk") / "recommendations").glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 1_000
