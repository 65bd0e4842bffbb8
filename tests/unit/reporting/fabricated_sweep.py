"""A sweep.json as `genrec tune` writes it, from a handful of numbers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genrec.tuning.records import Progress, Sweep, Trial


def trial(number: int, params: dict[str, Any], *values: float, metric: str = "ndcg@10", **others: Any) -> Trial:
    """A finished trial with a validation for each value; `others` replace what a record says."""
    history = [
        {"step": 10.0 * epoch, "epoch": float(epoch), "elapsed_s": 1.0, "loss": 3.0 / epoch, metric: value}
        for epoch, value in enumerate(values, start=1)
    ]
    progress = others.pop("progress", {})
    account = Progress(
        history=history,
        epoch=float(len(values)),
        seconds=60.0,
        worker_seconds=progress.pop("worker_seconds", 120.0),
        events=1_000 * len(values),
        spans=[(100.0 * number, 100.0 * number + 90.0)],
        **progress,
    )
    best = max(history, key=lambda entry: entry[metric], default=None)
    return Trial(number, params, others.pop("state", "finished"), progress=account, best=best, **others)


def write_sweep_json(folder: Path, trials: list[Trial], **others: Any) -> Path:
    """Writes the record into a folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "name": "made-up",
        "metrics": ["ndcg@10"],
        "modes": ["max"],
        "seed": 1,
        "spec": {"searcher": {"name": "random"}, "scheduler": {"name": "asha"}},
        "base": {},
        "state": "finished",
        "spans": [[0.0, 100.0 * len(trials)]],
        "trials": trials,
    }
    (folder / "sweep.json").write_text(json.dumps(asdict(Sweep(**{**values, **others}))), encoding="utf-8")
    return folder
