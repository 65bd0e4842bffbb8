"""What `genrec status` makes of a run's folder: starting, running, silent, failed, finished."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genrec.cli import app
from genrec.cluster.mistakes import record
from genrec.errors import DataError, RunError
from genrec.launch.run_status import run_status, status_lines
from genrec.run_dir import RunDir

NOW_S = 1_000_000.0


@pytest.fixture
def run(tmp_path: Path, write_prepared: Any, make_config: Any) -> RunDir:
    found = RunDir(tmp_path / "runs" / "walk")
    found.create(make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), "evaluation.metric=ndcg@10"))
    return found


def write(run: RunDir, *lines: dict[str, Any]) -> None:
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def start(step: int, time_s: float) -> dict[str, Any]:
    return {"kind": "start", "step": step, "end_step": 100, "workers": 2, "launcher": "ray", "resumed": step > 0,
            "time_s": time_s}  # fmt: skip


def train(step: int, time_s: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": step / 50, "time_s": time_s, "elapsed_s": 1.0, "loss": 2.5,
            "events_per_s": 1234.0, "eta_s": 60.0}  # fmt: skip


def validation(step: int, value: float, *, best: bool) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "epoch": 1.0, "time_s": NOW_S, "elapsed_s": 1.0, "seconds": 1.0,
            "metrics": {"ndcg@10": value}, "best": best}  # fmt: skip


def test_a_run_that_trains(run: RunDir) -> None:
    write(
        run, start(0, NOW_S - 90), train(20, NOW_S - 80), start(10, NOW_S - 50), train(50, NOW_S - 20),
        validation(40, 0.2, best=True), validation(50, 0.1, best=False), train(60, NOW_S - 10),
    )  # fmt: skip
    found = run_status(run.root, NOW_S)
    assert (found.state, found.step, found.end_step, found.loss) == ("running", 60, 100, 2.5)
    assert found.last_line_age_s == 10.0
    assert found.eta_s == 50.0, "the estimate is ten seconds old"
    assert (found.starts, found.resumed, found.repeated_steps) == (2, 1, 10)
    assert found.last_validation == {"step": 50, "epoch": 1.0, "ndcg@10": 0.1}
    assert found.best_validation == {"step": 40, "epoch": 1.0, "ndcg@10": 0.2}
    assert found.last_checkpoint is None
    texts = dict(status_lines(found))
    assert texts["Step"] == "60 of 100, epoch 1.2"
    assert texts["Checkpoint"] == "none that counts"
    assert texts["Left"] == "50 s"


def test_a_run_that_says_nothing_any_more(run: RunDir) -> None:
    write(run, start(0, NOW_S - 9_000), train(10, NOW_S - 8_000))
    found = run_status(run.root, NOW_S)
    assert (found.state, found.eta_s) == ("silent", None)
    assert "the same command goes on" in dict(status_lines(found))["State"]


def test_a_run_with_long_steps_is_given_time(run: RunDir) -> None:
    write(run, start(0, NOW_S - 900), train(1, NOW_S - 600), train(2, NOW_S - 400))
    assert run_status(run.root, NOW_S).state == "running"


def test_a_run_that_failed_says_why(run: RunDir) -> None:
    write(run, start(0, NOW_S - 20), train(10, NOW_S - 10))
    record(run.root / "failure.json", RunError("The loss is NaN; lower optimizer.lr."))
    found = run_status(run.root, NOW_S)
    assert (found.state, found.failure) == ("failed", "The loss is NaN; lower optimizer.lr.")
    assert dict(status_lines(found))["State"] == "failed: The loss is NaN; lower optimizer.lr."


def test_a_finished_run_and_one_that_goes_on_after_its_end(run: RunDir) -> None:
    write(run, start(0, NOW_S - 20), train(100, NOW_S - 10))
    run.evaluation_path.write_text("{}")
    os.utime(run.evaluation_path, (NOW_S, NOW_S))
    assert run_status(run.root, NOW_S + 9_000).state == "finished"
    write(run, start(0, NOW_S - 20), train(100, NOW_S - 10), start(100, NOW_S + 50), train(110, NOW_S + 60))
    assert run_status(run.root, NOW_S + 70).state == "running"


def test_a_run_before_its_first_step(run: RunDir) -> None:
    assert run_status(run.root).state == "starting"
    os.utime(run.config_path, (1, 1))
    found = run_status(run.root)
    assert found.state == "silent"
    assert "nothing was ever trained" in dict(status_lines(found))["State"]


def test_the_page_on_weights_and_biases(run: RunDir) -> None:
    (run.root / "wandb.json").write_text('{"id": "ab12", "url": "https://wandb.example.org/r/ab12"}')
    assert run_status(run.root).wandb == "https://wandb.example.org/r/ab12"
    (run.root / "wandb.json").write_text('{"id": "ab12", "url": null}')
    assert "wandb sync" in str(run_status(run.root).wandb)
    (run.root / "wandb.json").write_text('{"id": "ab')
    assert "is damaged" in str(run_status(run.root).wandb)


def test_the_command(run: RunDir, tmp_path: Path) -> None:
    write(run, start(0, time.time() - 2), train(10, time.time() - 1))
    shown = CliRunner().invoke(app, ["status", str(run.root)])
    assert "10 of 100" in shown.output
    assert json.loads(CliRunner().invoke(app, ["status", str(run.root), "--json"]).output)["state"] == "running"
    with pytest.raises(DataError, match="is not a run directory"):
        run_status(tmp_path)


@pytest.mark.parametrize("rest", [b'{"kind": "tra', b"\0\0\0\0", b"\xff\xfe \x80"])
def test_files_that_were_cut(run: RunDir, rest: bytes) -> None:
    """As a kill, a full disk or a machine that lost its power leave them."""
    write(run, start(0, NOW_S - 30), train(10, NOW_S - 10))
    whole = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(whole + rest)
    assert (run_status(run.root, NOW_S).state, run_status(run.root, NOW_S).step) == ("running", 10)
    run.metrics_path.write_bytes(whole + rest + b"\n" + whole)
    with pytest.raises(DataError, match=r"metrics.jsonl line 3 is not JSON; restore the file or remove the line"):
        run_status(run.root, NOW_S)


@pytest.mark.parametrize("text", ["", '{"mess', "[]", "{}"])
def test_a_failure_that_cannot_be_read_is_one_all_the_same(run: RunDir, text: str) -> None:
    write(run, start(0, NOW_S - 20))
    (run.root / "failure.json").write_text(text)
    found = run_status(run.root, NOW_S)
    assert found.state == "failed"
    assert "failure.json holds why, and is damaged; log.txt" in str(found.failure)


@pytest.mark.parametrize("name", ["nothing", "../walk", "größe", "walk/config.yaml", "-x", "."])
def test_what_is_no_run_is_said(run: RunDir, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.root.parent)
    done = CliRunner().invoke(app, ["status", "--", name])
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"{name} is not a run directory")
