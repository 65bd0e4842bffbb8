"""One measurement in processes of its own: started, watched, ended at the time-out, and turned into one row.

Whatever becomes of the workers, the row says it: `status` is ok, out-of-memory, timed-out or failed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import genrec
from genrec.bench.matrix import Matrix, Measurement
from genrec.bench.result import Row
from genrec.bench.rows import row_of
from genrec.bench.worker import says_out_of_memory
from genrec.config import config_from_dict
from genrec.machine_facts import machine_line
from genrec.run_dir import run_dir_of
from genrec.training.start import with_whole_paths

LOOK_S = 0.05
GRACE_S = 5.0
"""How long the other workers may take to end when one has failed."""

Status = Literal["ok", "out-of-memory", "timed-out", "failed"]


@dataclass(frozen=True, slots=True)
class Task:
    """Plain values, so that a Ray task can be told: the columns that name the row, the config, what is measured."""

    key: str
    columns: Row
    config: dict[str, Any]
    span: dict[str, Any]
    workers: int
    timeout_s: float


class Ended(NamedTuple):
    """How a worker process ended: its exit code, the last line that it said, and what it wrote down."""

    code: int
    last_line: str
    answer: dict[str, Any] | None


def task_of(measurement: Measurement, matrix: Matrix) -> Task:
    """What the workers of a measurement are told."""
    case = measurement.case
    config = with_whole_paths(case.config)
    train = {"max_steps": matrix.warmup_steps + matrix.steps, "max_epochs": None, "min_steps": None}
    train["log_every_steps"] = matrix.steps
    values = config.model_dump(mode="json")
    values["train"] |= train
    values["tracking"]["wandb"] = False
    values["evaluation"]["validation"] = "inline"  # there is none, and one in the background would ask for Ray Train
    columns: Row = {"case": case.name, **case.overrides, "repetition": measurement.repetition, "mode": measurement.mode}
    span = {
        "mode": measurement.mode,
        "warmup_steps": matrix.warmup_steps,
        "memory_limit_bytes": matrix.memory_limit_bytes,
    }
    return Task(measurement.key, columns, values, span, config.cluster.max_workers, matrix.timeout_s)


def run_task(task: Task) -> Row:
    """The row of a measurement; never raises for what its workers do."""
    kills_before = _oom_kills()
    with tempfile.TemporaryDirectory(prefix="genrec-bench-") as name:
        folder = Path(name)
        config = config_from_dict({**task.config, "name": "case", "runs_dir": str(folder)})
        run_dir_of(config).create(config)
        path = folder / "task.json"
        path.write_text(json.dumps({"config": config.model_dump(mode="json"), "span": task.span}), encoding="utf-8")
        ended, timed_out = _run_workers(path, task)
    status, error = judge(ended, timed_out, task, killed_for_memory=_oom_kills() > kills_before)
    row: Row = {**task.columns, "status": status, "error": error, "workers": task.workers}
    row |= {"load_average_1_min": round(os.getloadavg()[0], 2), "machine": machine_line()}
    answers = [worker.answer for worker in ended if worker.answer is not None]
    return row | row_of(config, answers) if status == "ok" else row


def _run_workers(path: Path, task: Task) -> tuple[list[Ended], bool]:
    """How all workers ended, and whether that was at the time-out."""
    logs = [path.with_name(f"rank-{rank}.log") for rank in range(task.workers)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        port = _free_port()
        processes += [_start(path, rank, task.workers, port, log) for rank, log in enumerate(logs)]
        timed_out = _wait(processes, task.timeout_s)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [
        Ended(process.returncode, _last_line(log), _answer(path.with_name(f"rank-{rank}.json")))
        for rank, (process, log) in enumerate(zip(processes, logs, strict=True))
    ], timed_out


def _start(path: Path, rank: int, workers: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    """A worker that leads a process group of its own, so that whatever it starts ends with it."""
    home = str(Path(genrec.__file__).parents[1])
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "genrec.bench.worker", str(path)]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def _wait(processes: list[subprocess.Popen[bytes]], timeout_s: float) -> bool:
    """Waits until all have ended, one has failed and the others had their time, or time is up; whether it was."""
    deadline, limit_is_failure = time.monotonic() + timeout_s, False
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return not limit_is_failure
        if not limit_is_failure and any(process.returncode for process in processes):
            deadline, limit_is_failure = min(deadline, time.monotonic() + GRACE_S), True
        time.sleep(LOOK_S)
    return False


def judge(ended: list[Ended], timed_out: bool, task: Task, *, killed_for_memory: bool) -> tuple[Status, str | None]:
    """Status and error of the row. The first worker that failed counts, and one without memory before all others."""
    if timed_out:
        return "timed-out", f"not done after {task.timeout_s:g} s"
    told = sorted(
        (worker.answer for worker in ended if worker.answer is not None and worker.answer["status"] != "ok"),
        key=lambda answer: (answer["status"] != "out-of-memory", answer["time_s"]),
    )
    silent = [worker for worker in ended if worker.code and worker.answer is None]
    for worker in silent:
        if says_out_of_memory(worker.last_line):
            return "out-of-memory", worker.last_line
        if worker.code == -signal.SIGKILL and killed_for_memory:
            return "out-of-memory", "killed by the system, which had no memory left"
    if told:
        return told[0]["status"], told[0]["error"]
    if silent:
        code = silent[0].code
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return "failed", f"{how}: {silent[0].last_line}".rstrip(": ")
    return "ok", None


def _answer(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with suppress(json.JSONDecodeError):  # it was killed while it wrote
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answer
    return None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _oom_kills() -> int:
    """Processes that Linux has killed for want of memory, on this machine or, in a container, in it."""
    counts = {"/sys/fs/cgroup/memory.events": "oom_kill ", "/proc/vmstat": "oom_kill "}
    found = 0
    for path, name in counts.items():
        with suppress(OSError):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return found
