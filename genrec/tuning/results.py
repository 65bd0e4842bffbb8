"""What a trial has reached, from its run directory: metric lines become a history, an evaluation becomes intervals."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from genrec.run_dir import RunDir, read_metrics
from genrec.tuning.config import LOSS, SIZE, SPEED
from genrec.tuning.records import Progress, Trial


def history_of(lines: Sequence[dict[str, Any]], num_parameters: int | None) -> list[dict[str, float]]:
    """One entry for every validation of a run, by step; of a step validated twice, the second.

    `loss` is the mean of the train lines since the validation before, and `events_per_s` their median; where there are
    no lines, those of the validation before, and none at the first.
    """
    entries: dict[int, dict[str, float]] = {}
    losses: list[float] = []
    speeds: list[float] = []
    for line in lines:
        if line.get("kind") == "train":
            losses.append(float(line["loss"]))
            speeds.append(float(line["events_per_s"]))
        elif line.get("kind") == "validation":
            entry = {"step": line["step"], "epoch": line["epoch"], "elapsed_s": line["elapsed_s"], **line["metrics"]}
            before = next(reversed(entries.values()), {})
            for name, value in ((LOSS, mean(losses) if losses else None), (SPEED, median(speeds) if speeds else None)):
                value = before.get(name) if value is None else value
                if value is not None:
                    entry[name] = value
            if num_parameters is not None:
                entry[SIZE] = num_parameters
            entries[line["step"]] = entry
            losses.clear()
            speeds.clear()
    return [entries[step] for step in sorted(entries)]


def follow(progress: Progress, run: RunDir, num_parameters: int | None, events_per_epoch: int) -> None:
    """Brings a trial's account up to what its run has written."""
    lines = read_metrics(run.metrics_path)
    # What a trial did before it took over another's checkpoint stays, but it is not what it is judged by.
    progress.history = history_of(lines, num_parameters)
    starts = [line for line in lines if line.get("kind") == "start"]
    steps = [line for line in lines if line.get("kind") in ("train", "validation")]
    if starts:
        progress.end_step = starts[-1]["end_step"]
    if steps:
        progress.step, progress.epoch = steps[-1]["step"], steps[-1]["epoch"]
    speeds = [line["events_per_s"] for line in lines if line.get("kind") == "train"]
    progress.events_per_s = median(speeds) if speeds else None
    progress.events = progress.events_before + trained_events(lines, events_per_epoch)


def trained_events(lines: Sequence[dict[str, Any]], events_per_epoch: int) -> int:
    """Events that were trained on, those that a restart trained again included; not those of a donor."""
    first_start = next((line for line in lines if line.get("kind") == "start"), {"step": 0})
    epochs, furthest = 0.0, None if first_start["step"] else 0.0
    for line in lines:
        if line.get("kind") not in ("train", "validation"):
            continue
        epoch = float(line["epoch"])
        if furthest is not None and epoch < furthest:
            furthest = None  # a restart went back to its checkpoint; at most one line's steps are not counted
        elif furthest is not None:
            epochs += epoch - furthest
        furthest = epoch
    return round(epochs * events_per_epoch)


def problem_with(history: Sequence[dict[str, float]], metrics: Sequence[str]) -> str | None:
    """Why the newest validation cannot be judged; None when it can."""
    if not history:
        return None
    newest = history[-1]
    for name in metrics:
        if name not in newest and name in (LOSS, SPEED):
            return (
                f"No log line came before the validation at step {newest['step']:.0f}, so {name} is not known there; "
                "lower train.log_every_steps."
            )
        if name not in newest:
            known = ", ".join(key for key in newest if key not in ("step", "epoch", "elapsed_s"))
            return f"The trial reports no metric {name}, only {known}; choose one of these as `metric`."
        if not math.isfinite(newest[name]):
            return (
                f"{name} is {newest[name]} at step {newest['step']:.0f}, so it cannot be compared; lower the upper end "
                "of optimizer.lr, or choose another metric."
            )
    return None


def best_entry(history: Sequence[dict[str, float]], metric: str, mode: str) -> dict[str, float] | None:
    """The entry with the best value, the earlier of two that are equal; None where there is no finite one."""
    known = [entry for entry in history if math.isfinite(entry.get(metric, math.nan))]
    if not known:
        return None
    sign = 1 if mode == "max" else -1
    return max(known, key=lambda entry: (sign * entry[metric], -entry["step"]))


def take_results(trial: Trial, run: Path, metric: str, mode: str) -> None:
    """Puts the best of a trial, and the evaluation of its finished run, into its record."""
    trial.best = best_entry(trial.progress.history, metric, mode)
    evaluation_path = RunDir(run).evaluation_path
    if trial.state != "finished" or not evaluation_path.is_file():
        return
    evaluation = json.loads(evaluation_path.read_text(encoding="utf-8"))
    validation = evaluation.get("validation", {})
    intervals = validation.get("intervals") or {}
    # The run may have kept another model than the sweep ranks it by; then they are not the intervals of this value.
    same = trial.best is not None and validation.get("best_step", trial.best["step"]) == trial.best["step"]
    trial.intervals = {name: list(pair) for name, pair in intervals.items()} if same else {}
    trial.test = evaluation.get("test", {}).get("metrics", {})


def values_of(trial: Trial, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """The values of the sweep's metrics at the trial's best validation; None where one is missing."""
    if trial.best is None:
        return None
    values = tuple(trial.best.get(name, math.nan) for name in metrics)
    return values if all(math.isfinite(value) for value in values) else None
