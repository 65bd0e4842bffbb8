"""Runs training in real processes over gloo, with a hard time-out that ends the whole group."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
"""


def train_in_processes(configs: Sequence[ExperimentConfig], workers: int, timeout_s: float = 240) -> None:
    """Trains every config in turn on `workers` processes; all of them share the interpreter's start-up."""
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
            command = [sys.executable, "-c", _WORKER, str(task)]
            processes.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        try:
            for process, _ in processes:
                process.wait(timeout_s)
        finally:
            for process, log in processes:
                process.kill()
                process.wait()
                log.close()
        failed = [rank for rank, (process, _) in enumerate(processes) if process.returncode]
        logs = "\n".join((Path(folder) / f"worker-{rank}.log").read_text()[-3000:] for rank in failed)
        assert not failed, f"workers {failed} failed:\n{logs}"


def losses(config: ExperimentConfig) -> list[float]:
    """The loss of every step; a step that was trained twice counts with its last line."""
    return list(column(config, "loss").values())


def column(config: ExperimentConfig, name: str) -> dict[int, float]:
    """A column of the `train` lines by step."""
    lines = (Path(config.runs_dir) / config.name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record[name] for record in records if record["kind"] == "train"}
