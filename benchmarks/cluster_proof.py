"""Sends a run, a sweep and a benchmark to a real Ray cluster of three nodes, and compares with local runs.

    make cluster-proof
    python benchmarks/cluster_proof.py --steps 60 --json benchmarks/out/cluster_proof.json

The nodes are `ray start` processes with a network namespace and an address each (root and iproute2; else one address).
`genrec submit` runs outside of them, as on a laptop. A node is killed in the middle of the run, and the job is stopped
and sent again: it must go on from a checkpoint of the first. A node is killed in the sweep's first trial too, which
must go on by itself. The run and the sweep's best trial must have, in every step, the loss of a local twin, one process
without Ray, within 1e-5; every case of the benchmark must have been measured.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from chaos_cluster import ROOT, Cluster
from chaos_judge import largest_difference, losses
from chaos_machine import ChaosError, Network, kill_marked, remove_leftovers, scratch_folder
from chaos_run import last_step
from genrec.bench.result import (
    Result,
    describe_machine,
    git_commit,
    installed_versions,
    read_result,
    write_result,
)
from genrec.config import load_config
from genrec.cpu_op import compile_cpu_op
from genrec.errors import GenrecError
from genrec.reporting.sweep_record import read_record
from genrec.run_dir import RunDir, read_metrics
from genrec.tuning.records import trial_id

CONFIG = "configs/chaos.yaml"
NUM_NODES = 3
TOLERANCE = 1e-5
LOOK_S = 0.2
COMMAND_TIMEOUT_S = 1_800
LOCAL = ("--launcher", "local", "cluster.workers=1")
GENREC = str(Path(sys.executable).with_name("genrec"))
SETTINGS = (
    "data.source.num_events=20000",
    "data.source.num_items=300",
    "train.checkpoint_every_steps=10",
    "train.evaluate_every_epochs=1000",
    "tracking.log_windows=false",
    "faults.step_timeout_s=120",
    "faults.pause_timeout_s=300",
    "cluster.collective_timeout_s=300",
)
SWEEP = (
    "configs/sweeps/efficiency.yaml",
    "name=proof",
    "metric=ndcg@10",
    "space={optimizer.lr: {choice: [0.0001]}}",
    "fixed={data.source.num_events: 50000, train.max_epochs: 4, train.log_every_steps: 1, "
    "train.checkpoint_every_steps: 10, faults.step_timeout_s: 120, cluster.workers: 2, cluster.cpus_per_worker: 1.5}",
)
"""The base and one more trial, one after the other, each with a worker on either node."""
SWEEP_KILL_STEP = 15
MATRIX = ("benchmarks/matrices/smoke.yaml", "modes=[full]")


class ProofError(Exception):
    """The proof does not hold; a sentence that says where."""


class Laptop:
    """Runs `genrec` outside of the cluster, with its token."""

    def __init__(self, cluster: Cluster, storage: Path, log: Path) -> None:
        self.cluster = cluster
        self.storage = storage
        self.log = log
        self.environment = cluster.environment("laptop")

    def run(self, *words: str) -> str:
        """What a command that must succeed printed."""
        done = subprocess.run(
            [GENREC, *words], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        self.log.open("a", encoding="utf-8").write(f"$ genrec {' '.join(words)}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            raise ProofError(f"`genrec {' '.join(words[:3])}` ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """A job that is being followed."""
        options = ["--address", self.cluster.dashboard, "--storage", str(self.storage)]
        return subprocess.Popen(
            [GENREC, "submit", *options, "--", *words], cwd=ROOT, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs of the cluster, the newest first."""
        found: list[dict[str, Any]] = json.loads(
            self.run("jobs", "list", "--address", self.cluster.dashboard, "--json")
        )
        return found


def prove(laptop: Laptop, steps: int, overrides: list[str]) -> dict[str, Any]:
    """The three proofs; what was measured. Raises ProofError where one does not hold."""
    found = prove_training(laptop, steps, overrides) | prove_benchmark(laptop)
    if laptop.cluster.network.missing is None:
        found |= prove_sweep(laptop)
    else:
        print(f"no sweep: nodes on one address share a session folder ({laptop.cluster.network.missing})", flush=True)
    return found | {"jobs": [{key: job[key] for key in ("id", "status", "run")} for job in laptop.jobs()]}


def prove_training(laptop: Laptop, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Submits a run, breaks it, submits it again, and compares every loss with the local run's."""
    runs = laptop.storage / "runs"
    words = ["train", CONFIG, *SETTINGS, f"train.max_steps={steps}", "train.max_epochs=null", *overrides]
    print("the local run, one process without Ray", flush=True)
    prepared = f"data.prepared={laptop.storage}/prepared/chaos"
    laptop.run(*words, *LOCAL, "name=local", f"runs_dir={runs}", prepared)

    run = RunDir(runs / "submitted")
    print("submitted; a node is killed in the middle, and the job is stopped", flush=True)
    first, first_step_s = _submit_and_wait(laptop, [*words, "name=submitted"], run, steps // 2)
    print(f"first step {first_step_s:.1f} s after `genrec submit`", flush=True)
    laptop.cluster.kill_node(NUM_NODES - 1)
    killed_at = last_step(run.metrics_path)[0]
    job = laptop.jobs()[0]
    laptop.run("jobs", "stop", job["id"], "--address", laptop.cluster.dashboard)
    _end(first, expected=1)

    laptop.cluster.start()
    print(f"killed at step {killed_at}; the same command again", flush=True)
    second, resumed_s = _submit_and_wait(laptop, [*words, "name=submitted"], run, killed_at + 1)
    output = _end(second, expected=0)
    if "Test, " not in output:
        raise ProofError("The followed logs lack the final table.")
    records = read_metrics(run.metrics_path)
    starts = [record["step"] for record in records if record["kind"] == "start"]
    if not 0 < starts[-1] <= killed_at:
        raise ProofError(f"The job that was sent again began at step {starts[-1]}, not from a checkpoint of the first.")
    difference = _difference(runs / "local", run.root)
    print("evaluate, as a job", flush=True)
    evaluation = laptop.submit("evaluate", "runs/submitted")
    _end(evaluation, expected=0)
    status = json.loads(laptop.run("status", str(run.root), "--json"))
    if status["state"] != "finished" or status["resumed"] < 1:
        raise ProofError(f"`genrec status` says {status['state']}, {status['resumed']} resumed starts.")
    return {
        "steps": steps,
        "submit_to_first_step_s": round(first_step_s, 1),
        "startup_s": next(record["startup"] for record in records if record["kind"] == "start"),
        "resubmit_to_first_step_s": round(resumed_s, 1),
        "killed_at_step": killed_at,
        "resumed_at_step": starts[-1],
        "loss_largest_relative_difference": difference,
    }


def prove_sweep(laptop: Laptop) -> dict[str, Any]:
    """Submits a sweep, kills a node in its first trial, and trains its best config again on the laptop."""
    print("a sweep, as a job; a node is killed in its first trial", flush=True)
    folder = laptop.storage / "sweeps" / "proof"
    process = laptop.submit("tune", *SWEEP)
    first = RunDir(folder / "trials" / trial_id(0))
    _wait(lambda: last_step(first.metrics_path)[0] >= SWEEP_KILL_STEP, process)
    laptop.cluster.kill_node(NUM_NODES - 1)
    killed_at = last_step(first.metrics_path)[0]
    laptop.cluster.start()
    _end(process, expected=0)
    record = read_record(folder)
    states = [trial["state"] for trial in record.trials]
    if states != ["finished"] * 2:
        raise ProofError(f"The sweep's trials are {', '.join(states)}, and both should be finished.")
    starts = [start["step"] for start in _starts(first)]
    if len(starts) < 2 or starts[1] == 0:
        raise ProofError(f"The trial that lost a node began at steps {starts}, not once again from a checkpoint.")
    runs = laptop.storage / "runs"
    laptop.run("train", str(folder / "best.yaml"), *LOCAL, "name=best", f"runs_dir={runs}")
    trial = folder / "trials" / trial_id(record.ranked[0]["number"])
    return {
        "sweep_s": round(record.seconds, 1),
        "sweep_killed_at_step": killed_at,
        "sweep_trial_began_at_steps": starts,
        "sweep_loss_largest_relative_difference": _difference(runs / "best", trial),
    }


def prove_benchmark(laptop: Laptop) -> dict[str, Any]:
    """Submits a benchmark."""
    print("a benchmark, as a job", flush=True)
    _end(laptop.submit("bench", *MATRIX), expected=0)
    result = read_result(laptop.storage / "benchmarks" / "out" / "smoke.json")
    status = [row["status"] for row in result.rows]
    if status != ["ok"] * 2:
        raise ProofError(f"The benchmark's cases are {', '.join(map(str, status))}, and both should be ok.")
    return {"benchmark_events_per_s": [round(row["events_per_s"]) for row in result.rows]}


def _difference(local: Path, submitted: Path) -> float:
    """The largest relative difference of two runs' losses."""
    mine, theirs = (losses(read_metrics(folder / "metrics.jsonl")) for folder in (local, submitted))
    difference, at_step = largest_difference(mine, theirs)
    if difference > TOLERANCE:
        raise ProofError(
            f"Losses of {local.name} and {submitted.name} differ by {difference:.2g} at step {at_step}, more than "
            f"{TOLERANCE:g}."
        )
    return difference


def _submit_and_wait(laptop: Laptop, words: list[str], run: RunDir, step: int) -> tuple[subprocess.Popen[str], float]:
    """The followed job once it has done `step`, and the seconds from `genrec submit` to its first optimizer step."""
    num_starts = len(_starts(run))
    submitted_s = time.time()
    process = laptop.submit(*words)
    _wait(lambda: len(_starts(run)) > num_starts, process)
    first_step_s = _starts(run)[-1]["time_s"] - submitted_s
    _wait(lambda: last_step(run.metrics_path)[0] >= step, process)
    return process, first_step_s


def _starts(run: RunDir) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run.metrics_path) if record["kind"] == "start"]


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not ready():
        if process.poll() is not None:
            said = process.stdout.read() if process.stdout else ""
            raise ProofError(f"`genrec submit` ended with {process.returncode} too early: {said[-800:]}")
        if time.monotonic() > deadline:
            process.kill()
            raise ProofError(f"Nothing came within {COMMAND_TIMEOUT_S} s.")
        time.sleep(LOOK_S)


def _end(process: subprocess.Popen[str], *, expected: int) -> str:
    """What the followed job printed; its command must end as the job did."""
    output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
    if process.returncode != expected:
        raise ProofError(f"`genrec submit` ended with {process.returncode}, not {expected}: {output[-800:]}")
    return output


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Makes the cluster, proves, takes the cluster away; exit code 1 with a sentence when the proof does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help=f"section.field=value on top of {CONFIG}")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "out" / "cluster_proof.json")
    arguments = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _leave)
    remove_leftovers()
    owner = os.getpid()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            scratch = scratch_folder(owner)
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            network = Network(owner, NUM_NODES)
            stack.callback(network.remove)
            stack.callback(kill_marked, owner)
            compile_cpu_op()  # a minute once, which would count as a slow start
            cluster = Cluster(owner, network, NUM_NODES, scratch, with_dashboard=True)
            cluster.start()
            print(f"addresses of their own: {network.missing or 'yes'}; {cluster.dashboard}", flush=True)
            log = arguments.json.with_suffix(".log")
            log.unlink(missing_ok=True)
            found = prove(Laptop(cluster, scratch / "storage", log), arguments.steps, arguments.overrides)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the cluster and its network are taken away; there is no result.")
    except (ChaosError, GenrecError, ProofError) as error:
        sys.exit(f"Error: {error}")
    result = Result(
        name="cluster_proof",
        config=load_config(ROOT / CONFIG, [*SETTINGS, *arguments.overrides]).model_dump(mode="json"),
        rows=[],
        medians=found | {"namespaces": network.missing or True},
        versions=installed_versions(("torch", "ray", "deepspeed", "pyarrow")),
        machine=describe_machine(),
        commit=git_commit(ROOT),
    )
    write_result(arguments.json, result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
