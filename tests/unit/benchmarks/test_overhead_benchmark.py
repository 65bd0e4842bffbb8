"""The overhead benchmark: bare PyTorch under torchrun computes what one process computes, and ratios are of a round."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_matrices import BASE

import overhead
from bare_loop import bare_loop
from bare_loop import main as bare_loop_main
from genrec.bench.result import Row
from genrec.config import load_config
from genrec.data.prepare import ensure_prepared
from genrec_command import CommandFailed, run_command, torchrun
from overhead import compare, medians_of
from peer_process import Finished


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A config for two workers that add up two micro-batches each."""
    values: dict[str, Any] = json.loads(json.dumps(BASE))
    values["data"]["prepared"] = str(tmp_path / "prepared")
    values["batch"]["micro_batches_per_step"] = 4
    values["cluster"]["workers"] = 2
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def test_two_processes_under_torchrun_compute_what_one_does(file: str) -> None:
    config = load_config(file)
    ensure_prepared(config.data)
    alone = bare_loop(config, 0.1)
    found = overhead.loop(file, [], 0.1, 2)
    assert found["loss_after_warmup"] == pytest.approx(alone["loss_after_warmup"], rel=1e-5)
    assert alone["loss_after_warmup"] > 1
    assert found["events_per_s"] > 0 and alone["events_per_s"] > 0


def test_a_config_that_the_bare_loop_cannot_run_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bare_loop.py", file, "engine.precision=bf16"])
    with pytest.raises(SystemExit, match=r"this config has .*engine\.precision=bf16 .*; set 0, fp32 and highest"):
        bare_loop_main()


def test_a_command_that_fails_says_its_last_line() -> None:
    with pytest.raises(CommandFailed, match=r"ended with status failed: the reason$") as caught:
        run_command([sys.executable, "-c", "raise SystemExit('one\\nthe reason')"], timeout_s=60)
    assert caught.value.finished.status == "failed"
    assert run_command([sys.executable, "-c", "print('said')"], timeout_s=60) == "said\n"


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child.txt"
    code = "import signal, sys, os; open(sys.argv[1], 'w').write(str(os.getpid())); signal.pause()"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    with pytest.raises(CommandFailed, match="out-of-time"):
        run_command([sys.executable, "-c", start, code, str(note)], timeout_s=5)
    deadline = time.monotonic() + 30
    while _runs(int(note.read_text())):
        assert time.monotonic() < deadline, "the child outlives the command"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip()[:1] not in ("", "Z")


def test_torchrun_starts_its_words_as_local_workers() -> None:
    command = torchrun(3, "-m", "genrec", "train")
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-5:] == ["--nproc-per-node", "3", "-m", "genrec", "train"]


def test_every_round_asks_each_side_and_a_failure_is_a_row(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def loop(file: str, overrides: list[str], seconds: float, workers: int | None) -> dict[str, float]:
        return {"events_per_s": 200.0 if workers is None else 100.0 * workers + 50}

    def trainer(file: str, overrides: list[str], seconds: float, expected: float, launcher: str) -> dict[str, float]:
        asked.append(expected)
        if len(asked) == 2:
            raise CommandFailed(["genrec"], Finished("out-of-time", "not done", 9.0))
        return {"events_per_s": 225.0, "data_wait_fraction": 0.25, "seconds_to_first_step": 9.0}

    monkeypatch.setattr(overhead, "loop", loop)
    monkeypatch.setattr(overhead, "trainer", trainer)
    monkeypatch.setattr(overhead, "prepare", lambda file, overrides: None)
    result = compare(file, [], 2, 1.0, "local")
    assert [row["side"] for row in result.rows] == ["bare", "torchrun", "trainer"] * 2
    assert [row["workers"] for row in result.rows[:3]] == [1, 2, 2]
    assert asked == [250.0, 250.0]
    assert (result.rows[5]["status"], result.rows[5]["error"]) == ("out-of-time", "not done")
    assert result.name == "overhead"
    assert result.medians["trainer_over_torchrun"] == {"median": 0.9, "minimum": 0.9, "maximum": 0.9, "count": 1}


def test_ratios_are_taken_within_a_round() -> None:
    speeds = {"bare": (100.0, 50.0), "torchrun": (90.0, 40.0), "trainer": (81.0, 44.0)}
    rows: list[Row] = [
        {"round": number, "side": side, "events_per_s": speed, "status": "ok"}
        for side, of_rounds in speeds.items()
        for number, speed in enumerate(of_rounds)
    ]
    for row in rows[-2:]:
        row |= {"data_wait_fraction": 0.0, "seconds_to_first_step": 3.0}
    found = medians_of(rows)
    assert found["trainer_over_torchrun"] == pytest.approx({"median": 1.0, "minimum": 0.9, "maximum": 1.1, "count": 2})
    assert found["trainer_over_bare"]["minimum"] == pytest.approx(0.81)
    assert found["torchrun_events_per_s"]["median"] == 65.0
