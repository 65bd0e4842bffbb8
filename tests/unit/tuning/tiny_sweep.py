"""A sweep file and its base config on a prepared set, for tests that start no Ray."""

from pathlib import Path
from typing import Any

import yaml

from genrec.config import ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.tuning import sweep
from genrec.tuning.config import SweepConfig, load_sweep
from genrec.tuning.director import Director
from genrec.tuning.records import Progress, SweepDir, Trial, write_progress

SPACE = {"optimizer.lr": {"log_uniform": [1.0e-4, 1.0e-1]}, "model.dropout": {"uniform": [0.0, 0.5]}}


def write_sweep_file(folder: Path, base: ExperimentConfig, **settings: Any) -> Path:
    """sweep.yaml and base.yaml in a folder; `settings` replace those of a random search over two settings."""
    (folder / "base.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json")), encoding="utf-8")
    values = {
        "name": "tiny",
        "sweeps_dir": str(folder / "sweeps"),
        "base": "base.yaml",
        "space": SPACE,
        "budget": {"trials": 4},
        **settings,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def loaded(folder: Path, base: ExperimentConfig, **settings: Any) -> tuple[SweepConfig, ExperimentConfig]:
    """The sweep of `write_sweep_file`, loaded as the command does."""
    return load_sweep(write_sweep_file(folder, base, **settings))


def director_of(spec: SweepConfig, base: ExperimentConfig, *, cluster: Any = lambda _: None) -> Director:
    """A director as the command makes it, over whatever the sweep's folder holds."""
    folder = SweepDir(spec.root)
    folder.root.mkdir(parents=True, exist_ok=True)
    director = sweep.director_of(spec, base, load_manifest(base.data.prepared), cluster, folder=folder)
    director.open()
    return director


def validation(epoch: float, value: float, **others: float) -> dict[str, float]:
    """One entry of a trial's history."""
    return {"step": epoch * 10, "epoch": epoch, "elapsed_s": epoch, "ndcg@10": value, "loss": 2.0, **others}


def finish(director: Director, trial: Trial, *values: float, outcome: Any = "finished", **progress: Any) -> None:
    """Writes a trial's own account, a validation for each value, and tells the director that it is done."""
    history = [validation(epoch, value) for epoch, value in enumerate(values, start=1)]
    account = Progress(history=history, outcome=outcome, step=10 * len(values), epoch=float(len(values)), **progress)
    write_progress(director.folder.progress_path(trial.id), account)
    director.ended(trial)
