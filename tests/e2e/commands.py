"""Runs real `genrec` commands, each with a hard time-out, and kills them when a run has come far enough."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GENREC = str(Path(sys.executable).with_name("genrec"))


def genrec(folder: Path, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """The finished command, run in `folder`."""
    return subprocess.run(
        [GENREC, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def succeed(folder: Path, *arguments: str, timeout_s: float = 240) -> str:
    """What a command that must succeed printed."""
    done = genrec(folder, *arguments, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def refused(folder: Path, *arguments: str, exit_code: int = 2) -> str:
    """The sentence of a command that must be refused, without a stack trace."""
    done = genrec(folder, *arguments)
    assert done.returncode == exit_code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def kill_when(
    folder: Path, *arguments: str, ready: Callable[[], int | None], timeout_s: float = 240
) -> subprocess.Popen[bytes]:
    """Starts a command; when `ready` returns a process id (0: the command's own), kills that process with SIGKILL.

    Returns the command, still running when another process was killed.
    """
    with (folder / "killed.log").open("wb") as log:
        process = subprocess.Popen([GENREC, *arguments], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + timeout_s
    while (victim := ready()) is None:
        assert process.poll() is None, (folder / "killed.log").read_text()[-3000:]
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"not ready within {timeout_s} s: " + (folder / "killed.log").read_text()[-3000:])
        time.sleep(0.02)  # the pace of looking, not a wait for something to have happened
    os.kill(victim or process.pid, signal.SIGKILL)
    return process


def records(run: Path, kind: str) -> list[dict]:
    """The lines of one kind in a run's metrics.jsonl; a line that is still being written is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Loss by step; of a step trained twice, the second time."""
    return {record["step"]: record["loss"] for record in records(run, "train")}
