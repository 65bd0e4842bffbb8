"""Runs one side of a comparison as a child process with a time-out, and makes RecTools' virtual environment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
OUT = BENCHMARKS / "out"
RECTOOLS_VENV = OUT / "rectools-venv"
RECTOOLS_REQUIREMENT = "rectools[torch]==0.19.*"
RECTOOLS_CONSTRAINTS = ("torch==2.13.0+cpu",)
"""`+cpu`: pip then refuses every CUDA build instead of downloading gigabytes of it."""

INSTALL_TIMEOUT_S = 1_800
GRACE_S = 20

Status = Literal["ok", "out-of-time", "out-of-memory", "failed"]

_MEMORY_MESSAGES = ("MemoryError", "can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended; `message` is its last line on stderr when it was not ok."""

    status: Status
    message: str
    wall_s: float


def classify(return_code: int | None, stderr: str) -> Status:
    """What an exit means; a `return_code` of None is a time-out, a SIGKILL from outside is the out-of-memory killer."""
    if return_code is None:
        return "out-of-time"
    if return_code == 0:
        return "ok"
    if return_code in (-signal.SIGKILL, 128 + signal.SIGKILL) or any(text in stderr for text in _MEMORY_MESSAGES):
        return "out-of-memory"
    return "failed"


def run_child(
    command: Sequence[str | Path], *, log: Path, timeout_s: float, threads: int | None, folder: Path = ROOT
) -> Finished:
    """Runs the command from `folder`, its output into `log`; ends its whole process group on a time-out.

    `threads` of None leaves their number to the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started_s = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return_code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return_code = None
        finally:
            _end(child)
    text = log.read_text(encoding="utf-8", errors="replace")
    status = classify(return_code, text)
    lines = text.strip().splitlines() or [""]
    return Finished(status, "" if status == "ok" else lines[-1][:300], time.perf_counter() - started_s)


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group first, so that Ray can take its own processes down, then SIGKILL."""
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(child.pid, number)
        try:
            child.wait(GRACE_S)
            return
        except subprocess.TimeoutExpired:
            continue


def read_measurement(path: Path) -> dict[str, Any]:
    """What a child wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def rectools_python() -> Path:
    """Interpreter of RecTools' virtual environment; raises FileNotFoundError when it was never made."""
    python = RECTOOLS_VENV / "bin" / "python"
    if not _marker().is_file():
        raise FileNotFoundError("RecTools is not installed yet; run: python benchmarks/peers.py setup")
    return python


def setup_rectools() -> dict[str, str]:
    """Makes RecTools' virtual environment unless the same one is there already; returns its package versions."""
    wanted = "\n".join([RECTOOLS_REQUIREMENT, *RECTOOLS_CONSTRAINTS]) + "\n"
    if not _marker().is_file() or _marker().read_text(encoding="utf-8") != wanted:
        if RECTOOLS_VENV.exists():
            shutil.rmtree(RECTOOLS_VENV)
        OUT.mkdir(parents=True, exist_ok=True)
        constraints = OUT / "rectools-constraints.txt"
        constraints.write_text("\n".join(RECTOOLS_CONSTRAINTS) + "\n", encoding="utf-8")
        python = RECTOOLS_VENV / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        for command in (
            [sys.executable, "-m", "venv", str(RECTOOLS_VENV)],
            [*pip, "torch"],
            [*pip, RECTOOLS_REQUIREMENT],
        ):
            subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
        _marker().write_text(wanted, encoding="utf-8")
    return rectools_versions()


def rectools_versions() -> dict[str, str]:
    """Name and version of every package in RecTools' virtual environment."""
    done = subprocess.run(
        [str(rectools_python()), "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return {package["name"].lower(): package["version"] for package in json.loads(done.stdout)}


def _marker() -> Path:
    """Written last: an interrupted installation does not count."""
    return RECTOOLS_VENV / ".installed"
