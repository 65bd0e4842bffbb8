"""The run directory (contract 6): one folder holds everything about a run.

runs/NAME/
  config.yaml         the resolved config           environment.json   commit, versions, hardware
  metrics.jsonl       one JSON object a line        log.txt            what the console said
  evaluation.json     metrics and protocol cards    report.html        `genrec report`
  evaluation-served.json   the same with options of `genrec evaluate` that change who answers
  checkpoints/step_00001000/                        see training/checkpoint.py
  export/             model.safetensors, config.yaml, items.parquet: the best model by validation
  exports/step_.../   the same of other checkpoints: `genrec checkpoints RUN --export STEP`
  validations/        results of background validations: see training/validations.py
  windows/            what each step was trained on, with tracking.log_windows: see training/window_log.py
  poisoned.jsonl      steps that were left out or ended the run: see training/step_guard.py
  profile/            `genrec train --profile`: see training/profile.py
  wandb.json          id and page on Weights & Biases: see training/tracking.py
  stacks/             where each worker stood when nothing moved: see training/watchdog.py
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genrec.config import ExperimentConfig, config_from_dict, load_config
from genrec.config_errors import read_yaml
from genrec.errors import DataError, RunError
from genrec.log_lines import PLACE, LogFormat, formatter
from genrec.storage import below, copy_folder, uri_of
from genrec.stored_folder import StoredFolder
from genrec.whole_file import write_atomically as write_atomically

SERVED_EVALUATION = "evaluation-served.json"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths inside one run directory. Creating the object touches nothing."""

    root: Path
    uri: str | None = None
    """Where the run is kept, when that is not `root`, which then is this machine's copy; `push` and `pull` do it."""

    @property
    def place(self) -> str:
        """What another process needs to find the run: its URI, or its folder as a whole path."""
        return self.uri or str(self.root.absolute())

    def pull(self) -> None:
        """Makes the copy what is stored, but for what has changed here; nothing to do for a folder."""
        if self.uri is not None:
            self._stored(self.uri).pull()

    def push(self) -> None:
        """Stores what has changed in the copy; nothing to do for a folder. Raises StorageError when that fails."""
        if self.uri is not None:
            self._stored(self.uri).push()

    def delete_stored(self) -> None:
        """Deletes the run and its copy, checkpoints left out; nothing to do for a folder."""
        if self.uri is not None:
            self._stored(self.uri).delete()

    @staticmethod
    def _stored(uri: str) -> StoredFolder:
        return StoredFolder(uri, leave_out=["checkpoints", "failure.json", "failure.json.reserve"], changes=True)

    @property
    def config_path(self) -> Path:
        """The resolved config of the run."""
        return self.root / "config.yaml"

    @property
    def environment_path(self) -> Path:
        """Commit, versions and hardware."""
        return self.root / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line, appended by rank 0."""
        return self.root / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """What the console said."""
        return self.root / "log.txt"

    @property
    def evaluation_path(self) -> Path:
        """Final metrics and their protocol cards."""
        return self.root / "evaluation.json"

    @property
    def served_evaluation_path(self) -> Path:
        """The same of a run's model that another one re-ranks."""
        return self.root / SERVED_EVALUATION

    def ranks_path(self, role: str, *, served: bool = False) -> Path:
        """The rank of every evaluated user, from which runs are compared; `served`: of evaluation-served.json."""
        return self.root / f"ranks-{role}{'-served' if served else ''}.parquet"

    @property
    def report_path(self) -> Path:
        """The HTML page."""
        return self.root / "report.html"

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def validations_path(self) -> Path:
        """Folder of the results of background validations."""
        return self.root / "validations"

    @property
    def export_path(self) -> Path:
        """Folder of the published model."""
        return self.root / "export"

    def create(self, config: ExperimentConfig) -> None:
        """Makes the folder and saves the config; raises RunError when it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config_path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        except OSError as error:
            raise RunError(
                f"Run directory {self.root} cannot be written ({error.strerror}); choose another with runs_dir=FOLDER."
            ) from error


def run_dir_of(config: ExperimentConfig) -> RunDir:
    """The run directory that a config names."""
    uri = uri_of(config.runs_dir)
    return RunDir(Path(config.runs_dir) / config.name) if uri is None else run_dir_at(below(uri, config.name))


def run_dir_at(place: str | Path) -> RunDir:
    """The run directory at a path, or at a URI. Nothing is touched."""
    uri = uri_of(place)
    return RunDir(Path(place)) if uri is None else RunDir(copy_folder(uri), uri)


def open_run(path: str | Path) -> tuple[RunDir, ExperimentConfig]:
    """An existing run and its config, fetched first when it is at a URI; raises DataError when there is no run."""
    run = run_dir_at(path)
    run.pull()
    if not run.config_path.is_file():
        raise DataError(f"{path} is not a run directory (no config.yaml); give the folder that `genrec train` printed.")
    return run, load_config(run.config_path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill has cut is dropped."""
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(f"{path} line {number} is not JSON; restore the file or remove the line.") from error
    return records


def config_differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """`section.field: old -> new` for every setting that differs."""
    return value_differences(old.model_dump(mode="json"), new.model_dump(mode="json"))


def value_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`section.field: old -> new` for every value of nested dictionaries that differs."""
    before, after = _flatten(old), _flatten(new)
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys if before.get(k) != after.get(k)]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        k: v for key, child in values.items() for k, v in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }


def load_saved_config(path: Path) -> ExperimentConfig:
    """A config that genrec itself has saved."""
    return config_from_dict(read_yaml(path), str(path))


def log_to(path: Path, log_format: LogFormat = "text") -> logging.Logger:
    """What this process logs goes to the run's log.txt too, as text or as lines of JSON (log_lines.py)."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(formatter(log_format))
    PLACE.run = path.parent.name
    log = logging.getLogger("genrec")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return log
