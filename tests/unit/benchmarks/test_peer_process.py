import sys
from pathlib import Path

import pytest

import peer_process
from peer_process import classify, rectools_python, run_child, setup_rectools


@pytest.mark.parametrize(
    ("return_code", "output", "status"),
    [
        (0, "", "ok"),
        (None, "", "out-of-time"),
        (-9, "", "out-of-memory"),
        (137, "", "out-of-memory"),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to", "out-of-memory"),
        (1, "ValueError: no", "failed"),
        (-15, "", "failed"),
    ],
)
def test_exit_codes_become_a_status(return_code: int | None, output: str, status: str) -> None:
    assert classify(return_code, output) == status


def test_a_child_that_fails_leaves_its_last_line(tmp_path: Path) -> None:
    finished = run_child(
        [sys.executable, "-c", "raise SystemExit('one\\nthe reason')"],
        log=tmp_path / "x.log",
        timeout_s=60,
        threads=1,
    )
    assert (finished.status, finished.message) == ("failed", "the reason")


def test_a_child_that_hangs_is_ended(tmp_path: Path) -> None:
    finished = run_child(
        [sys.executable, "-c", "import signal; signal.pause()"], log=tmp_path / "x.log", timeout_s=0.5, threads=1
    )
    assert finished.status == "out-of-time"
    assert finished.wall_s < 15


def test_a_child_gets_its_threads(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    finished = run_child([sys.executable, "-c", code], log=log, timeout_s=60, threads=2)
    assert finished.status == "ok"
    assert log.read_text("utf-8").strip() == "2"


def test_rectools_must_be_set_up_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "RECTOOLS_VENV", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"peers\.py setup"):
        rectools_python()


def test_setup_installs_the_cpu_build_of_torch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **_: object) -> None:
        commands.append(command)
        if "venv" in command:
            (tmp_path / "rectools-venv").mkdir()

    monkeypatch.setattr(peer_process, "OUT", tmp_path)
    monkeypatch.setattr(peer_process, "RECTOOLS_VENV", tmp_path / "rectools-venv")
    monkeypatch.setattr(peer_process.subprocess, "run", record)
    monkeypatch.setattr(peer_process, "rectools_versions", lambda: {"rectools": "0.19.0"})
    assert setup_rectools() == {"rectools": "0.19.0"}
    assert [command[-1] for command in commands[1:]] == ["torch", "rectools[torch]==0.19.*"]
    assert all("--constraint" in command for command in commands[1:])
    assert "+cpu" in (tmp_path / "rectools-constraints.txt").read_text("utf-8")
    setup_rectools()
    assert len(commands) == 3
