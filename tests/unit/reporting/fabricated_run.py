"""Run directories that look like real ones, made without training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from genrec.config import config_from_dict
from genrec.data.manifest import Manifest, save_manifest
from genrec.run_dir import RunDir

FIRST_START_S = 1_772_000_000.0
STARTUP = {"ray_start": 6.2, "imports": 7.9, "prepare_data": 0.4, "build_model": 1.1, "first_batch": 3.6}
PROTOCOL = {
    "role": "test",
    "split": "leave-one-out: a user's last event is test, the one before it validation, the rest training",
    "window_events": 50,
    "uses_query_time": False,
    "candidates": "the whole catalogue, 12101 items, none sampled",
    "filter_seen": False,
    "ties": "against the model: items that score the same as the target rank before it",
    "num_users": 22_363,
    "epoch_choice": "the step with the best ndcg@10 on validation: step 1320",
}
ENVIRONMENT = {
    "commit": "4f1c9b2",
    "time": "2026-02-25T06:13:20Z",
    "versions": {"python": "3.11.11", "torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8"},
    "hardware": {"cpus": 2, "memory_bytes": 8_000_000_000, "gpus": [{"name": "none", "memory_bytes": None}]},
}


def config_values(prepared: str = "prepared/beauty", **changes: Any) -> dict[str, Any]:
    """A config as YAML would give it; `changes` replace whole sections."""
    values: dict[str, Any] = {
        "name": "sasrec-beauty",
        "data": {
            "source": {"name": "sequence-text", "path": "$GENREC_DATA/amazon-beauty/beauty.txt", "layout": "lists"},
            "prepared": prepared,
        },
        "model": {"name": "sasrec", "dropout": 0.5},
        "loss": {"name": "full-softmax"},
        "optimizer": {"lr": 0.001, "warmup_steps": 50, "schedule": "cosine"},
        "train": {"max_epochs": 30},
        "cluster": {"workers": 2},
    }
    return {**values, **changes}


def start_record(step: int, *, resumed: bool = False, time_s: float = FIRST_START_S) -> dict[str, Any]:
    """A line of `kind` start."""
    return {
        "kind": "start",
        "step": step,
        "workers": 2,
        "launcher": "ray",
        "resumed": resumed,
        "time_s": time_s,
        "startup": STARTUP,
    }


def train_record(step: int, **changes: Any) -> dict[str, Any]:
    """A line of `kind` train: a loss that falls from 9.4 towards 5.5, with noise that depends on the step alone."""
    noise = np.random.default_rng(step)
    record = {
        "kind": "train",
        "step": step,
        "epoch": step / 60,
        "time_s": FIRST_START_S + 20 + step * 0.12,
        "elapsed_s": step * 0.12,
        "loss": 5.5 + 3.9 * math.exp(-step / 400) + 0.06 * noise.standard_normal(),
        "lr": 0.001 * min(1.0, step / 50),
        "gradient_norm": 0.4 + 2 * math.exp(-step / 150) + 0.05 * abs(noise.standard_normal()),
        "events_per_s": 61_000 + 2_500 * noise.standard_normal(),
        "data_wait_fraction": 0.011 + 0.004 * abs(noise.standard_normal()),
        "memory_bytes": int(1.31e9 + step * 2_000),
    }
    return {**record, **changes}


def validation_record(step: int, *, best: bool = False) -> dict[str, Any]:
    """A line of `kind` validation: NDCG@10 rises towards 0.047 and falls again after step 1,300."""
    level = 0.047 * (1 - math.exp(-step / 350)) - max(0, step - 1_300) * 4e-6
    metrics = {"hr@10": level * 1.72, "ndcg@10": level, "mrr@10": level * 0.79, "hr@50": level * 3.1}
    return {
        "kind": "validation",
        "step": step,
        "epoch": step / 60,
        "time_s": FIRST_START_S + 21 + step * 0.12,
        "elapsed_s": step * 0.12,
        "metrics": metrics,
        "seconds": 1.9,
        "best": best,
    }


def evaluation(role: str = "test") -> dict[str, Any]:
    """The content of `evaluation.json` with one role."""
    metrics = {"hr@1": 0.0193, "hr@10": 0.0702, "ndcg@10": 0.0406, "mrr@10": 0.0316, "hr@50": 0.1431, "ndcg@50": 0.056}
    popularity = {
        "hr@1": 0.0009,
        "hr@10": 0.0093,
        "ndcg@10": 0.0045,
        "mrr@10": 0.003,
        "hr@50": 0.0291,
        "ndcg@50": 0.009,
    }
    card = {"metrics": metrics, "num_users": 22_363, "popularity": popularity, "protocol": PROTOCOL, "best_step": 1_320}
    return {role: card}


def evaluation_in_depth() -> dict[str, Any]:
    """As `evaluation`, with what an evaluated run also has: intervals, slices, what the lists hold, heads."""
    values = evaluation()
    test = values["test"]
    test["intervals"] = {name: [0.9 * value, 1.1 * value] for name, value in test["metrics"].items()}
    test["beyond_accuracy"] = {"coverage@10": 0.418, "novelty@10": 12.34, "gini@10": 0.871}
    test["heads"] = {
        "action_accuracy": 0.853,
        "action_majority": 0.712,
        "action_log_loss": 0.4123,
        "action_base_log_loss": 0.7012,
        "dwell_mae_log": 0.6543,
        "dwell_base_mae_log": 0.9123,
    }
    part = {"num_users": 5_590, "metrics": test["metrics"], "standard_errors": {"ndcg@10": 0.0013}}
    rest = {"num_users": 16_773, "metrics": {"ndcg@10": 0.0512}, "standard_errors": {"ndcg@10": 0.0017}}
    test["slices"] = {"history_length": {"4-7": part, "8-15": rest}, "item_type": {"<track>": part, "episode": rest}}
    return values


def complete_records(num_steps: int = 1_800) -> list[dict[str, Any]]:
    """One start, a training line every 10 steps, a validation every 60."""
    records: list[dict[str, Any]] = [start_record(0)]
    for step in range(10, num_steps + 1, 10):
        records.append(train_record(step))
        if step % 60 == 0:
            records.append(validation_record(step, best=step <= 1_320))
    return records


def write_run(
    folder: Path,
    records: list[dict[str, Any]],
    *,
    evaluated: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> RunDir:
    """A run directory with these records; files that are None are left out."""
    run = RunDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = config_from_dict(config or config_values()).model_dump(mode="json")
    run.config_path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    run.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in records))
    if evaluated is not None:
        run.evaluation_path.write_text(json.dumps(evaluated))
    if environment is not None:
        run.environment_path.write_text(json.dumps(environment))
    return run


def write_manifest(folder: Path, best_known: dict[str, float]) -> None:
    """A manifest without sequence files: all that a report reads of a prepared set."""
    folder.mkdir(parents=True)
    manifest = Manifest(
        num_users=22_363,
        num_items=12_101,
        num_events=198_502,
        num_train_events=153_776,
        has_times=True,
        time_range=(1_023_840_000, 1_406_073_600),
        actions=("stream", "skip"),
        length_histogram={8: 15_000, 16: 7_363},
        split={"name": "leave-one-out"},
        files=(),
        rejected={"null_item": 3},
        filtered={"min_user_events": 1_210},
        config={},
        best_known=best_known,
        content_hash="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    )
    save_manifest(folder, manifest)
