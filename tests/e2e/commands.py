"""Runs real `genrec` commands, each with a hard time-out, and kills them when a run has come far enough."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GENREC = str(Path(sys.executable).with_name("genrec"))


def genrec(
    folder: Path, *arguments: str, timeout_s: float = 240, program: Sequence[str] = (GENREC,)
) -> subprocess.CompletedProcess[str]:
    """The finished command, run in `folder`."""
    return subprocess.run(
        [*program, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def succeed(folder: Path, *arguments: str, timeout_s: float = 240, program: Sequence[str] = (GENREC,)) -> str:
    """What a command that must succeed printed."""
    done = genrec(folder, *arguments, timeout_s=timeout_s, program=program)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def refused(folder: Path, *arguments: str, exit_code: int = 2) -> str:
    """The sentence of a command that must be refused, without a stack trace."""
    done = genrec(folder, *arguments)
    assert done.returncode == exit_code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def on_ray_with(num_cpus: int) -> list[str]:
    """What to write for `genrec` so that the command finds a Ray of its own with so many CPUs."""
    start_ray = f"import ray; ray.init('local', num_cpus={num_cpus}, include_dashboard=False)"
    return [sys.executable, "-c", f"{start_ray}; from genrec.cli import main; main()"]


@contextmanager
def start(folder: Path, *arguments: str, program: Sequence[str] = (GENREC,)) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs beside the test; whatever is left of it at the end is killed."""
    with (folder / "started.log").open("wb") as log:
        process = subprocess.Popen([*program, *arguments], cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 240) -> None:
    """Looks until `ready` holds; fails when the command ends before, or time is up."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, f"the command ended with {process.returncode} before the test could go on"
        assert time.monotonic() < deadline, f"not ready within {timeout_s} s"
        time.sleep(0.02)  # the pace of looking, not a wait for something to have happened


def kill_when(folder: Path, *arguments: str, ready: Callable[[], bool]) -> None:
    """Runs a command until `ready` holds, and kills it with SIGKILL."""
    with start(folder, *arguments) as process:
        wait_until(ready, process)


def records(run: Path, kind: str) -> list[dict]:
    """The lines of one kind in a run's metrics.jsonl; a line that is still being written is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Loss by step; of a step trained twice, the second time."""
    return {record["step"]: record["loss"] for record in records(run, "train")}
