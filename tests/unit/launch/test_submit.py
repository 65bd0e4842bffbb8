"""`genrec submit` and `genrec jobs`, against a dashboard of this process and Ray's own client."""

import asyncio
import io
import json
import re
import shlex
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from launch_fakes import FakeDashboard
from typer.testing import CliRunner

from genrec.bench.matrix import cases_of, load_matrix
from genrec.cli import app
from genrec.errors import ConfigError, RunError
from genrec.launch import ray_jobs
from genrec.tuning.config import load_sweep

CONFIG = """\
name: walk
data: {source: {name: synthetic}, prepared: prepared/walk}
model: {name: sasrec, dim: 16, num_layers: 1, num_heads: 1}
loss: {name: full-softmax}
train: {max_epochs: 1}
cluster: {workers: 1}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "walk.yaml").write_text(CONFIG)
    (folder / "constraints.txt").write_text("# pins\nray==2.60.0\nnumpy==2.0.0  # a reason\n")
    monkeypatch.chdir(folder)
    return folder


def submit(dashboard: FakeDashboard, *words: str) -> Result:
    done = CliRunner().invoke(app, ["submit", "--address", dashboard.address, "--no-wait", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_submission_ships_the_folder_and_the_command(dashboard: FakeDashboard, project: Path) -> None:
    options = ["--entrypoint-cpus", "1", "--entrypoint-memory", "2", "--entrypoint-label", "zone=a", "--storage", "/s"]
    done = submit(dashboard, *options, "--packages", "constraints", "--", "train", "walk.yaml", "seed=3", "--fresh")
    assert done.exit_code == 0, done.output
    assert "Shipping 2 files" in done.output
    (job,) = dashboard.jobs
    assert job["entrypoint"] == (
        "python -m genrec train walk.yaml seed=3 --fresh runs_dir=/s/runs data.prepared=/s/prepared/walk"
    )
    assert job["submission_id"].startswith("walk-20")
    assert job["metadata"]["run"] == "walk"
    assert job["metadata"].keys() == {"run", "name", "commit", "genrec_version"}
    assert job["entrypoint_num_cpus"] == 1
    assert job["entrypoint_memory"] == 2 * 2**30
    assert job["entrypoint_label_selector"] == {"zone": "a"}
    assert job["runtime_env"]["pip"]["packages"] == ["numpy==2.0.0"]
    (package,) = dashboard.packages.values()
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.namelist() == ["constraints.txt", "walk.yaml"]
    again = submit(dashboard, "--storage", "/s", "--", "train", "walk.yaml")
    assert again.exit_code == 0
    assert len(dashboard.packages) == 1, "what the cluster has is not sent again"
    assert dashboard.jobs[1]["metadata"]["run"] == "walk"


CODES = "semantic_ids: {path: maps/walk}\nmodel: {name: code-decoder, dim: 8, num_layers: 1, num_heads: 1}\n"


def test_a_map_of_codes_is_made_on_the_storage(dashboard: FakeDashboard, project: Path) -> None:
    (project / "codes.yaml").write_text(re.sub("model: .*\n", CODES, CONFIG))
    (project / "find.yaml").write_text(SWEEP.replace("walk.yaml", "codes.yaml"))
    (project / "sizes.yaml").write_text(MATRIX.replace("sub/walk.yaml", "codes.yaml"))
    with pytest.raises(ConfigError, match=r"is relative, .*--storage"):
        submit(dashboard, "--", "tokenize", "codes.yaml", "runs_dir=/r", "data.prepared=/p")
    for words in (["train", "codes.yaml"], ["tokenize", "codes.yaml"], ["tune", "find.yaml"], ["bench", "sizes.yaml"]):
        submit(dashboard, "--storage", "/s", "--", *words)
        assert "/s/maps/walk" in dashboard.jobs[-1]["entrypoint"]
    with pytest.raises(ConfigError, match=r"case a: semantic_ids.path \(m\) is relative"):
        submit(dashboard, "--storage", "/s", "--", "bench", "sizes.yaml", "cases={a: {semantic_ids.path: m}}")


def test_a_sweep_over_maps_of_codes_names_where_they_are(dashboard: FakeDashboard, project: Path) -> None:
    def send(base: str, maps: str) -> None:
        (project / "codes.yaml").write_text(re.sub("model: .*\n", CODES, CONFIG).replace("maps/walk", base))
        (project / "find.yaml").write_text(SWEEP.replace("walk.yaml", "codes.yaml"))
        submit(
            dashboard, "--storage", "/s", "--", "tune", "find.yaml", f"space={{semantic_ids.path: {{choice: {maps}}}}}"
        )

    with pytest.raises(ConfigError, match=r"find.yaml: space.semantic_ids.path \(maps/b\) is relative"):
        send("/a", "[/a, maps/b]")
    with pytest.raises(ConfigError, match=r"semantic_ids.path of its base, which is trial 0 \(maps/walk\) is relative"):
        send("maps/walk", "[/a, /b]")
    assert dashboard.jobs == []
    send("/a", "[/a, /b]")
    assert "/s/maps" not in dashboard.jobs[-1]["entrypoint"]


def test_commands_on_a_run_find_it_on_the_storage(dashboard: FakeDashboard, project: Path) -> None:
    submit(dashboard, "--storage", "/s/", "--", "evaluate", "runs/walk", "--split", "test")
    assert dashboard.jobs[0]["entrypoint"] == "python -m genrec evaluate /s/runs/walk --split test"
    assert dashboard.jobs[0]["metadata"]["run"] == "walk"


SWEEP = """\
name: find
base: walk.yaml
fixed: {train.max_epochs: 2}
space: {optimizer.lr: {uniform: [0.001, 0.1]}}
budget: {trials: 2}
"""
MATRIX = "base: sub/walk.yaml\naxes: {model.dim: [16, 32]}\n"


def test_a_sweep_keeps_its_folder_and_its_data_on_the_storage(dashboard: FakeDashboard, project: Path) -> None:
    (project / "find.yaml").write_text(SWEEP)
    submit(dashboard, "--storage", "/s", "--", "tune", "find.yaml", "seed=3")
    (job,) = dashboard.jobs
    assert shlex.split(job["entrypoint"])[3:] == [
        "tune", "find.yaml", "seed=3", "sweeps_dir=/s/sweeps",
        'fixed={"train.max_epochs": 2, "data.prepared": "/s/prepared/walk"}',
    ]  # fmt: skip
    sweep, base = load_sweep(Path("find.yaml"), shlex.split(job["entrypoint"])[5:])
    assert (sweep.root, base.data.prepared, base.train.max_epochs) == (Path("/s/sweeps/find"), "/s/prepared/walk", 2)
    assert job["metadata"]["run"] == "find"
    placed = ["sweeps_dir=/mine", "fixed={data.prepared: /there}"]
    submit(dashboard, "--", "tune", "find.yaml", *placed)
    assert shlex.split(dashboard.jobs[1]["entrypoint"])[5:] == placed, "needs no storage"


def test_a_matrix_keeps_its_result_and_its_data_on_the_storage(dashboard: FakeDashboard, project: Path) -> None:
    (project / "sub").mkdir()
    (project / "walk.yaml").rename(project / "sub" / "walk.yaml")
    (project / "sizes.yaml").write_text(MATRIX)
    submit(dashboard, "--storage", "/s", "--", "bench", "sizes.yaml", "steps=3", "--fresh")
    (job,) = dashboard.jobs
    words = shlex.split(job["entrypoint"])[3:]
    assert words == [
        "bench", "sizes.yaml", "steps=3", "--fresh", 'fixed={"data.prepared": "/s/prepared/walk"}',
        "--output", "/s/benchmarks/out/sizes.json",
    ]  # fmt: skip
    matrix = load_matrix(Path("sizes.yaml"), [words[2], words[4]])
    assert matrix.steps == 3
    assert {case.config.data.prepared for case in cases_of(matrix, "sizes.yaml")} == {"/s/prepared/walk"}
    assert [list(case.overrides) for case in cases_of(matrix, "sizes.yaml")] == [["model.dim"]] * 2


@pytest.mark.parametrize(
    ("storage", "words", "says"),
    [
        ([], ["tune", "find.yaml"], r"sweeps_dir \(sweeps\) is relative, .*--storage"),
        ([], ["bench", "sizes.yaml"], r"data.prepared \(prepared/walk\) is relative"),
        (["--storage", "/s"], ["bench", "sizes.yaml", "cases={a: {data.prepared: p}}"], r"case a: data.prepared \(p\)"),
        (["--storage", "/s", "--exclude", "walk.yaml"], ["tune", "find.yaml"], "Config walk.yaml is not among"),
        (["--storage", "/s", "--exclude", "walk.yaml"], ["bench", "sizes.yaml"], "Config walk.yaml is not among"),
        (["--storage", "/s"], ["bench", "sizes.yaml", "stepz=3"], "did you mean steps"),
    ],
)
def test_sweeps_and_matrices_that_would_be_lost_are_refused(
    dashboard: FakeDashboard, project: Path, storage: list[str], words: list[str], says: str
) -> None:
    (project / "find.yaml").write_text(SWEEP)
    (project / "sizes.yaml").write_text(MATRIX.replace("sub/", ""))
    with pytest.raises(ConfigError, match=says):
        submit(dashboard, *storage, "--", *words)
    assert dashboard.jobs == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "walk.yaml"], r"runs_dir \(runs\) is relative, .*--storage"),
        (["evaluate", "runs/walk"], r"run \(runs/walk\) is relative"),
        (["train", "missing.yaml"], "does not exist"),
        (["train", "walk.yaml", "model.dims=3", "runs_dir=/r", "data.prepared=/p"], "did you mean dim"),
        (["train", "walk.yaml", "cluster.workers=9", "batch.micro_batches_per_step=9", "runs_dir=/r",
          "data.prepared=/p"], r"must leave 1 of the cluster's 4 CPUs"),
        (["submit", "x"], "cannot be sent to a cluster"),
        (["evaluate", "s3://key:word@bucket/runs/walk"], "A word of the command holds credentials"),
        (["train", "walk.yaml", "runs_dir=s3://b/r?secret_key=word"], r"credentials \(secret_key\)"),
    ],
)  # fmt: skip
def test_what_cannot_run_there_is_refused_before_anything_is_sent(
    dashboard: FakeDashboard, project: Path, words: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        submit(dashboard, "--", *words)
    assert dashboard.packages == {}
    assert dashboard.jobs == []


def test_an_option_that_the_command_has_not_is_refused_here(dashboard: FakeDashboard, project: Path) -> None:
    done = submit(dashboard, "--", "train", "walk.yaml", "--no-such-option")
    assert done.exit_code == 2
    assert dashboard.jobs == []


def test_a_config_that_is_not_shipped_is_refused(dashboard: FakeDashboard, project: Path) -> None:
    with pytest.raises(ConfigError, match="not among the 1 files that are shipped"):
        submit(dashboard, "--storage", "/s", "--exclude", "walk.yaml", "--", "train", "walk.yaml")


class FakeClient:
    """Ray's job client with one job, whose output comes in pieces; a piece that is an error is raised."""

    def __init__(self, *streams: list[str | Exception], states: list[str]) -> None:
        self.streams = list(streams)
        self.states = states
        self.stopped: list[str] = []

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.streams.pop(0):
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_info(self, job_id: str) -> Any:
        if job_id == "unknown":
            raise RuntimeError("Request failed with status code 404: Job unknown does not exist.")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(
            submission_id=job_id, job_id=None, status=state, entrypoint="e", metadata={"run": "walk"},
            start_time=1000, end_time=None, message="exit code 3, last available logs: x",
            driver_exit_code=3 if state == "FAILED" else 0,
        )  # fmt: skip

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "RECONNECT_S", 0.0)


def followed(client: FakeClient) -> tuple[str, ray_jobs.Job]:
    said: list[str] = []
    job = ray_jobs.follow(client, "job", said.append)  # type: ignore[arg-type]
    return "".join(said), job


@pytest.mark.parametrize(("state", "result"), [("SUCCEEDED", 0), ("FAILED", 3), ("STOPPED", 1)])
def test_following_ends_as_the_job_ends(state: str, result: int) -> None:
    text, job = followed(FakeClient(["one\n", "two\n"], states=[state]))
    assert text == "one\ntwo\n"
    assert job.result == result
    assert job.message == "exit code 3"


def test_a_lost_connection_is_made_again_and_nothing_is_shown_twice() -> None:
    client = FakeClient(["one\ntw", RuntimeError("closed")], ["one\n", "two\nthree\n"], states=["RUNNING", "SUCCEEDED"])
    client.streams.append(["one\ntwo\nthree\n"])
    text, job = followed(client)
    assert text == "one\ntwo\nthree\n"
    assert job.status == "SUCCEEDED"


def test_a_cluster_that_is_gone_is_said() -> None:
    client = FakeClient(*[[ConnectionError("gone")] for _ in range(ray_jobs.RECONNECTS + 1)], states=["RUNNING"])
    with pytest.raises(RunError, match=r"lost 6 times \(gone\), and job job may still run; `genrec jobs logs job`"):
        followed(client)


class Refused(Exception):
    """What aiohttp raises when a head that starts answers with an error in place of a websocket; no RuntimeError."""


def test_a_head_that_starts_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.ClientError", Refused)
    client = FakeClient([Refused("503, message='Invalid response status'")], ["one\n"], states=["RUNNING", "SUCCEEDED"])
    client.streams.append(["one\n"])
    assert followed(client)[0] == "one\n"


def test_a_list_that_fails_is_one_sentence() -> None:
    from ray.exceptions import AuthenticationError

    client = FakeClient(states=["RUNNING"])
    for error in (ConnectionError("gone"), AuthenticationError("no token")):

        def fails(error: Exception = error) -> Any:
            raise error

        client.list_jobs = fails  # type: ignore[attr-defined]
        with pytest.raises(RunError, match=r"The cluster did not list its jobs: (gone|.*no token)"):
            ray_jobs.jobs_of(client)  # type: ignore[arg-type]


def test_stopping_waits_for_the_end() -> None:
    client = FakeClient(states=["RUNNING", "STOPPED"])
    assert ray_jobs.stop(client, "job").status == "STOPPED"  # type: ignore[arg-type]
    assert client.stopped == ["job"]
    with pytest.raises(ConfigError, match="no job 'unknown'"):
        ray_jobs.job_of(client, "unknown")  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_job_that_has_ended_stays_what_it_was(
    state: str, monkeypatch: pytest.MonkeyPatch, dashboard: FakeDashboard
) -> None:
    monkeypatch.setattr(ray_jobs, "connect", lambda _: FakeClient(states=[state]))
    done = CliRunner().invoke(app, ["jobs", "stop", "walk-1", "--address", dashboard.address])
    assert (done.exit_code, done.output) == (0, f"Job walk-1: {state.lower()}.\n")


@pytest.mark.parametrize("job_id", ["unknown", "", "..", "../version", "a?b", "a#b", "%2e%2e", "a b"])
@pytest.mark.parametrize("command", ["logs", "stop", "status"])
def test_an_unknown_job_is_one_sentence(
    command: str, job_id: str, monkeypatch: pytest.MonkeyPatch, dashboard: FakeDashboard
) -> None:
    asked: list[str] = []
    client = FakeClient(states=["RUNNING"])

    def none(job_id: str) -> Any:
        asked.append(job_id)
        raise RuntimeError("Request failed with status code 404: no such job.")

    for name in ("get_job_info", "get_job_logs", "stop_job"):
        monkeypatch.setattr(client, name, none, raising=False)
    monkeypatch.setattr(ray_jobs, "connect", lambda _: client)
    done = CliRunner().invoke(app, ["jobs", command, "--address", dashboard.address, "--", job_id])
    assert isinstance(done.exception, ConfigError)
    assert f"The cluster has no job {job_id!r}; `genrec jobs list`" in str(done.exception)
    assert asked == (["unknown"] if job_id == "unknown" else []), "it would be another page of the dashboard"


def test_interrupting_detaches_and_says_how_to_stop(monkeypatch: pytest.MonkeyPatch, dashboard: FakeDashboard) -> None:
    client = FakeClient(states=["RUNNING"])
    monkeypatch.setattr(ray_jobs, "connect", lambda _: client)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_jobs, "follow", interrupted)
    done = CliRunner().invoke(app, ["jobs", "logs", "walk-1", "--follow", "--address", dashboard.address])
    assert done.exit_code == 130
    assert "Detached; job walk-1 goes on." in done.output
    assert "`genrec jobs stop walk-1` stops it" in done.output
    assert client.stopped == []


def test_the_list_and_the_state_of_jobs(monkeypatch: pytest.MonkeyPatch, dashboard: FakeDashboard) -> None:
    client = FakeClient(states=["RUNNING"])
    client.list_jobs = lambda: [client.get_job_info("walk-1")]  # type: ignore[attr-defined]
    monkeypatch.setattr(ray_jobs, "connect", lambda _: client)
    address = ["--address", dashboard.address]
    listed = CliRunner().invoke(app, ["jobs", "list", *address])
    assert "walk-1" in listed.output and "running" in listed.output
    told = CliRunner().invoke(app, ["jobs", "status", "walk-1", "--json", *address])
    assert json.loads(told.output)["run"] == "walk"
