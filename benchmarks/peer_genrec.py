"""genrec's side of `peers.py`.

throughput --side genrec-loop    genrec's model in a bare single-process PyTorch loop, batches of 128 sequences
throughput --side genrec         `genrec train` on two Ray workers: Ray Data, Ray Train and DeepSpeed included
quality    --side genrec         `genrec train configs/sasrec_beauty.yaml`, its own validation curve
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from genrec.config import ExperimentConfig, config_from_dict, load_config
from genrec.data.batch import Batch, batch_from_arrays
from genrec.models.build import build_model
from genrec.run_dir import RunDir, read_metrics
from peer_process import ROOT
from peer_protocol import (
    Ids,
    PeerModel,
    SteadyMeter,
    model_from_json,
    peak_memory_bytes,
    read_sequences,
    targets_per_epoch,
    training_parts,
    write_measurement,
)
from peer_quality import BEAUTY_CONFIG, curve_points

WORKERS = 2
TIMED_LOG = "log-with-ordinal-times.csv"
STEP_ROOM = 1.05  # a step's token budget over the mean of 128 sequences: packing needs some room
STARTUP_ROOM_S = 120


def experiment(model: PeerModel, work: Path) -> dict[str, Any]:
    """The genrec config, as YAML holds it, of a model to compare on the log that `write_timed_log` makes in `work`."""
    if model.kind == "sasrec":
        network: dict[str, Any] = {"name": "sasrec"}
    else:
        head_dim = model.dim // model.num_heads
        network = {"name": "hstu", "query_dim": head_dim, "value_dim": head_dim}
    network |= {name: getattr(model, name) for name in ("dim", "num_layers", "num_heads", "dropout")}
    loss: dict[str, Any] = {"name": model.loss}
    if model.loss == "sampled-softmax":
        loss["num_negatives"] = model.num_negatives
    return {
        "name": model.name,
        "seed": model.seed,
        "runs_dir": str(work / "runs"),
        "data": {
            "source": {"name": "csv", "path": str(work / TIMED_LOG)},
            "prepared": str(work / "prepared" / Path(TIMED_LOG).stem),
        },
        "sequence": {"max_length": model.max_length},
        "model": network,
        "loss": loss,
        "optimizer": {"lr": model.lr},
        "train": {"max_steps": 1},
    }


def write_timed_log(work: Path, sequences: list[Ids]) -> None:
    """Writes the log as CSV with ordinal seconds, which is what the peer gets too: HSTU's time bias needs times."""
    lines = ["user,item,time"]
    for user, sequence in enumerate(sequences):
        lines += [f"{user},{item},{len(lines) + place}" for place, item in enumerate(sequence.tolist())]
    (work / TIMED_LOG).write_text("\n".join(lines) + "\n", encoding="utf-8")


def batches(training: list[Ids], model: PeerModel) -> Iterator[Batch]:
    """Endless shuffled epochs of `batch_sequences` windows; the last batch of an epoch is smaller."""
    generator = np.random.default_rng(model.seed)
    windows = [items[-model.max_length - 1 :] for items in training if len(items) > 1]
    while True:
        order = generator.permutation(len(windows))
        for start in range(0, len(order), model.batch_sequences):
            chosen = [windows[index] for index in order[start : start + model.batch_sequences]]
            lengths = np.array([len(window) - 1 for window in chosen])
            times = np.concatenate([np.arange(length) for length in lengths])
            yield batch_from_arrays(
                np.concatenate([window[:-1] for window in chosen]),
                np.concatenate([[0], np.cumsum(lengths)]),
                times=times,
                target_times=times + 1,
                targets=np.concatenate([window[1:] for window in chosen]),
            )


def measure_loop(
    config: ExperimentConfig, model: PeerModel, sequences: list[Ids], warmup_batches: int, seconds: float
) -> dict[str, Any]:
    """One steady-state reading of forward, backward and AdamW over batches made on the fly."""
    training, num_items = _as_indices(training_parts(sequences))
    torch.manual_seed(model.seed)
    network = build_model(config, num_items)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=model.lr, betas=(0.9, 0.98), weight_decay=0.0)
    meter = SteadyMeter(warmup_batches, seconds)
    for batch in batches(training, model):
        optimizer.zero_grad(set_to_none=True)
        loss = network(batch)
        (loss.loss_sum / loss.num_targets).backward()
        optimizer.step()
        if meter.batch_done(loss.num_targets):
            break
    return meter.reading() | {"targets_per_epoch": targets_per_epoch(training, model.max_length)}


def measure_trainer(arguments: argparse.Namespace, model: PeerModel, sequences: list[Ids]) -> dict[str, Any]:
    """One steady-state reading of the real trainer, from its metrics.jsonl.

    A short bare loop first tells how many steps fill the seconds.
    """
    work = Path(arguments.out).parent
    write_timed_log(work, sequences)
    values = experiment(model, work)
    probe = measure_loop(config_from_dict(values), model, sequences, arguments.warmup_batches, seconds=5)
    events_per_step = probe["targets_per_epoch"] / len(sequences) * model.batch_sequences
    steps = max(3, round(arguments.seconds * probe["events_per_s"] / events_per_step / arguments.warmup_batches))
    values["batch"] = {"tokens_per_step": round(events_per_step * STEP_ROOM), "micro_batches_per_step": WORKERS}
    values["cluster"] = {"workers": WORKERS, "threads_per_worker": max(1, arguments.threads // WORKERS)}
    values["train"] = {
        "max_steps": (steps + 1) * arguments.warmup_batches,
        "log_every_steps": arguments.warmup_batches,
        "evaluate_every_epochs": 1_000_000,
    }
    values["evaluation"] = {"max_validation_users": 512}
    path = Path(arguments.out).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    if return_code := subprocess.run(genrec("train", path, "--fresh"), cwd=ROOT).returncode:
        raise SystemExit(return_code)  # the last line of the log is then genrec's own sentence
    run = RunDir(Path(values["runs_dir"]) / values["name"])
    return steady_reading(read_metrics(run.metrics_path)) | {"targets_per_epoch": probe["targets_per_epoch"]}


def steady_reading(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Events a second of a metrics.jsonl without its first `train` line, which is the warm-up.

    Every line covers as many steps and nearly as many events, so their mean is the harmonic one.
    """
    lines = [record for record in records if record["kind"] == "train"]
    if len(lines) < 2:
        raise ValueError(f"metrics.jsonl has {len(lines)} train lines, a reading needs 2 or more; train more steps")
    rates = [line["events_per_s"] for line in lines[1:]]
    waits = [line["data_wait_fraction"] for line in lines[1:]]
    return {
        "events_per_s": len(rates) / sum(1 / rate for rate in rates),
        "seconds": lines[-1]["elapsed_s"] - lines[0]["elapsed_s"],
        "num_batches": lines[-1]["step"] - lines[0]["step"],
        "data_wait_fraction": sum(waits) / len(waits),
        "peak_memory_bytes": WORKERS * max(line["memory_bytes"] for line in lines),
    }


def measure_quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """The validation curve of `configs/sasrec_beauty.yaml`, cut at `max_seconds` of training."""
    work = Path(arguments.out).parent
    overrides = [f"runs_dir={work / 'runs'}", f"data.prepared={work / 'prepared' / 'amazon-beauty'}"]
    child = subprocess.Popen(genrec("train", BEAUTY_CONFIG, *overrides, "--fresh"), cwd=ROOT)
    try:
        return_code = child.wait(arguments.max_seconds + STARTUP_ROOM_S)
    except subprocess.TimeoutExpired:
        child.terminate()
        child.wait(STARTUP_ROOM_S)
        return_code = 0
    if return_code:
        raise SystemExit(return_code)
    run = RunDir(work / "runs" / load_config(BEAUTY_CONFIG).name)
    evaluation = json.loads(run.evaluation_path.read_text("utf-8")) if run.evaluation_path.is_file() else None
    points = curve_points(read_metrics(run.metrics_path), evaluation)
    return {"points": [point for point in points if point["training_s"] <= arguments.max_seconds]}


def genrec(*arguments: str | Path) -> list[str]:
    """The command line of the `genrec` next to this interpreter."""
    return [str(Path(sys.executable).with_name("genrec")), *map(str, arguments)]


def _as_indices(training: list[Ids]) -> tuple[list[Ids], int]:
    """The same sequences with item ids 1 .. num_items."""
    _, inverse = np.unique(np.concatenate(training), return_inverse=True)
    borders = np.cumsum([len(items) for items in training])[:-1]
    return np.split(inverse + 1, borders), int(inverse.max()) + 1


def main() -> None:
    """Measures what the command line asks for and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "quality"])
    parser.add_argument("--side", choices=["genrec-loop", "genrec"], required=True)
    parser.add_argument("--model", required=True, help="PeerModel as JSON")
    parser.add_argument("--log", required=True, help="the log file")
    parser.add_argument("--layout", choices=["pairs", "lists"], required=True)
    parser.add_argument("--out", required=True, help="where the measurement goes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup-batches", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-seconds", type=float, default=600)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    model = model_from_json(arguments.model)
    if arguments.what == "quality":
        measurement = measure_quality(arguments)
    else:
        sequences = read_sequences(arguments.log, arguments.layout)
        if arguments.side == "genrec":
            measurement = measure_trainer(arguments, model, sequences)
        else:
            config = config_from_dict(experiment(model, Path(arguments.out).parent))
            measurement = measure_loop(config, model, sequences, arguments.warmup_batches, arguments.seconds)
            measurement["peak_memory_bytes"] = peak_memory_bytes()
    write_measurement(arguments.out, measurement)


if __name__ == "__main__":
    main()
