"""What Ray Train, Ray Data and DeepSpeed cost: the real trainer against a bare PyTorch loop over the same batches.

    python benchmarks/overhead.py configs/sasrec_ml1m.yaml --rounds 3 --seconds 30 [section.field=value ...]

The bare side is one process with all the cores' threads and the config's own micro-batches, read into memory before the
clock starts: forward, backward, AdamW. The other side is `genrec train` as a user runs it. They take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, summarize, write_result
from genrec.config import ExperimentConfig, load_config
from genrec.run_dir import RunDir, read_metrics

WARMUP_STEPS = 5
BARE_STEPS = 40
TIMEOUT_S = 900


def bare_loop(config: ExperimentConfig, seconds: float) -> dict[str, float]:
    """Events a second of forward, backward and AdamW over the config's own micro-batches in memory."""
    import torch

    from genrec.data.manifest import load_manifest
    from genrec.data.plan import make_plan
    from genrec.data.stream import local_tables, worker_batches
    from genrec.models.build import build_model
    from genrec.training.loop import seed_micro_batch
    from genrec.training.optim import build_optimizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)
    parts = config.batch.micro_batches_per_step
    span = {"start_step": 0, "end_step": BARE_STEPS, "rank": 0, "workers": 1}
    stream = worker_batches(local_tables(make_plan(config), **span), **span, parts=parts)
    batches = [batch for _, batch in islice(stream, BARE_STEPS * parts)]
    model = build_model(config, load_manifest(config.data.prepared).num_items)
    model.train()
    optimizer = build_optimizer(model, config.optimizer)
    step, events, started_at = 0, 0, time.perf_counter()
    while step < WARMUP_STEPS or time.perf_counter() - started_at < seconds:
        if step == WARMUP_STEPS:
            events, started_at = 0, time.perf_counter()
        first = step % BARE_STEPS * parts
        for batch in batches[first : first + parts]:
            seed_micro_batch(config.seed, batch.micro_batch_id)
            (model(batch).loss_sum / batch.step_targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        events += batches[first].step_targets
        step += 1
    return {"events_per_s": events / (time.perf_counter() - started_at)}


def real_trainer(file: str, overrides: list[str], seconds: float, expected: float) -> dict[str, float]:
    """`train_steps` for about as many steps as take `seconds` at `expected` events a second."""
    config = load_config(file, overrides)
    logged = config.train.log_every_steps
    steps = max(4 * logged, round(seconds * expected / config.batch.tokens_per_step / logged) * logged)
    return train_steps(file, overrides, steps)


def train_steps(file: str, overrides: list[str], steps: int) -> dict[str, float]:
    """Events a second of `genrec train`, its data wait, and the time to its first step."""
    with tempfile.TemporaryDirectory() as runs:
        command = [
            str(Path(sys.executable).with_name("genrec")), "train", file, *overrides,
            f"runs_dir={runs}", "name=overhead", "train.max_epochs=null", f"train.max_steps={steps}",
            "train.evaluate_every_epochs=1000000", "train.patience=null", "evaluation.max_validation_users=512",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)
        records = read_metrics(RunDir(Path(runs) / "overhead").metrics_path)
    lines = [record for record in records if record["kind"] == "train"][1:]
    (start,) = [record for record in records if record["kind"] == "start"]
    return {
        "events_per_s": len(lines) / sum(1 / line["events_per_s"] for line in lines),
        "data_wait_fraction": mean(line["data_wait_fraction"] for line in lines),
        "seconds_to_first_step": start["seconds_to_first_step"],
        **{f"startup_{phase}_s": value for phase, value in start["startup"].items()},
    }


def compare(file: str, overrides: list[str], rounds: int, seconds: float) -> Result:
    """The two sides in turn, `rounds` times; the ratio is taken within each round."""
    genrec = str(Path(sys.executable).with_name("genrec"))
    subprocess.run([genrec, "prepare", file, *overrides], check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)
    rows: list[Row] = []
    ratios = []
    for number in range(rounds):
        child = [sys.executable, __file__, file, *overrides, "--bare", "--seconds", str(seconds)]
        done = subprocess.run(child, check=True, timeout=TIMEOUT_S, stdout=subprocess.PIPE, text=True)
        bare: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        trainer = real_trainer(file, overrides, seconds, bare["events_per_s"])
        ratios.append(trainer["events_per_s"] / bare["events_per_s"])
        load = os.getloadavg()[0]
        rows += [{"round": number, "side": "bare", **bare}, {"round": number, "side": "trainer", **trainer}]
        rows[-1]["load_average_1_min"] = load
        print(f"round {number}: bare {bare}, trainer {trainer}, ratio {ratios[-1]:.3f}, load {load:.1f}", flush=True)
    trainers = [row for row in rows if row["side"] == "trainer"]
    ratio = summarize(ratios)
    medians: dict[str, Any] = {
        "ratio": asdict(ratio) if ratio else None,
        **{k: median(float(row[k] or 0) for row in trainers) for k in ("data_wait_fraction", "seconds_to_first_step")},
    }
    return Result(
        name="overhead",
        config=load_config(file, overrides).model_dump(mode="json"),
        rows=rows,
        medians=medians,
        versions=installed_versions(("torch", "ray", "deepspeed", "pyarrow")),
        machine=describe_machine(),
        commit=git_commit(Path(__file__).parent),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", default="benchmarks/out/overhead.json")
    parser.add_argument("--bare", action="store_true", help="only the bare loop, printed as JSON")
    arguments = parser.parse_intermixed_args()
    if arguments.bare:
        print(json.dumps(bare_loop(load_config(arguments.config, arguments.overrides), arguments.seconds)))
        return
    result = compare(arguments.config, arguments.overrides, arguments.rounds, arguments.seconds)
    write_result(arguments.json, result)
    print(json.dumps(result.medians, indent=1))


if __name__ == "__main__":
    main()
