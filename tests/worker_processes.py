"""Runs training in real processes over gloo, with a hard time-out that ends the whole group."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from genrec.config import ExperimentConfig

_WORKER = """
import json, sys, time
from pathlib import Path
import torch.distributed as dist
from genrec.config import config_from_dict
from genrec.run_dir import run_dir_of
from genrec.training.local import fit
import os
if int(os.environ["WORLD_SIZE"]) > 1:
    dist.init_process_group("gloo")
for values in json.loads(Path(sys.argv[1]).read_text()):
    config = config_from_dict(values)
    fit(config, run_dir_of(config), time.time())
if dist.is_initialized():
    # A gloo group that is left to the interpreter's end may abort the process (pytorch/pytorch#190489).
    dist.destroy_process_group()
"""


class Ended(NamedTuple):
    """How a worker process ended, and what it said last."""

    code: int
    log: str


def train_in_processes(configs: Sequence[ExperimentConfig], workers: int, timeout_s: float = 240) -> None:
    """Trains every config in turn on `workers` processes; all of them share the interpreter's start-up."""
    ended = run_workers(configs, workers, timeout_s=timeout_s)
    failed = [rank for rank, worker in enumerate(ended) if worker.code]
    assert not failed, f"workers {failed} failed:\n" + "\n".join(ended[rank].log for rank in failed)


def run_workers(
    configs: Sequence[ExperimentConfig],
    workers: int,
    *,
    prelude: str = "",
    timeout_s: float = 240,
    meanwhile: Callable[[list[int]], None] = lambda _: None,
) -> list[Ended]:
    """As `train_in_processes`, whatever comes of it. `prelude` is code that each worker runs before it trains, and
    `meanwhile` is called with the process ids while they run. A process that is left at the time-out is killed."""
    for config in configs:
        run = Path(config.runs_dir) / config.name
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        task = Path(folder) / "configs.json"
        task.write_text(json.dumps([config.model_dump(mode="json") for config in configs]))
        processes = []
        for rank in range(workers):
            group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
            environment = {**os.environ, **group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = (Path(folder) / f"worker-{rank}.log").open("w")
            command = [sys.executable, "-c", prelude + _WORKER, str(task)]
            processes.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        deadline = time.monotonic() + timeout_s
        try:
            meanwhile([process.pid for process, _ in processes])
            for process, _ in processes:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
        finally:
            for process, log in processes:
                process.kill()
                process.wait()
                log.close()
        logs = [(Path(folder) / f"worker-{rank}.log").read_text()[-3000:] for rank in range(workers)]
        return [Ended(process.returncode, text) for (process, _), text in zip(processes, logs, strict=True)]


def losses(config: ExperimentConfig) -> list[float]:
    """The loss of every step; a step that was trained twice counts with its last line."""
    return list(column(config, "loss").values())


def column(config: ExperimentConfig, name: str) -> dict[int, float]:
    """A column of the `train` lines by step."""
    lines = (Path(config.runs_dir) / config.name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record[name] for record in records if record["kind"] == "train"}
