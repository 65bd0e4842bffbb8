"""Matrices for tests: a tiny model on a tiny synthetic log, with plain PyTorch, which starts fastest."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": {"name": "synthetic", "num_events": 10_000, "num_items": 200}, "prepared": "prepared/tiny"},
    "sequence": {"max_length": 20},
    "batch": {"tokens_per_step": 256, "micro_batches_per_step": 2, "steps_per_block": 4},
    "model": {"name": "sasrec", "dim": 16, "num_layers": 1, "num_heads": 1},
    "loss": {"name": "full-softmax"},
    "engine": {"name": "torch"},
    "train": {"max_steps": 5},
    "evaluation": {"ks": [1, 10]},
    "cluster": {"threads_per_worker": 1},
}


def write_matrix(folder: Path, **values: Any) -> Path:
    """A matrix file in `folder` whose data lie there too."""
    data = {**BASE["data"], "prepared": str(folder / "prepared")}
    path = folder / "tiny.yaml"
    matrix = {"base": {**BASE, "data": data}, "warmup_steps": 2, "steps": 3, "timeout_s": 120, **values}
    path.write_text(yaml.safe_dump(matrix, sort_keys=False), encoding="utf-8")
    return path
