"""Runs as a report of several shows them: what each recorded, under a name that tells it from the others."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.config import ExperimentConfig
from genrec.errors import DataError
from genrec.reporting.history import History, read_history
from genrec.run_dir import RunDir, open_run


@dataclass(frozen=True, slots=True)
class ReadRun:
    """One run: its files, read."""

    name: str
    directory: RunDir
    config: ExperimentConfig
    history: History
    evaluation: dict[str, dict[str, Any]]
    environment: dict[str, Any]


def read_runs(paths: Sequence[Path]) -> list[ReadRun]:
    """The runs; raises DataError for a folder that is none, has recorded nothing, or holds a damaged file."""
    opened = [open_run(path) for path in paths]
    names = Counter(config.name for _, config in opened)
    return [_read(run, config, unique=names[config.name] == 1) for run, config in opened]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no file. Raises DataError when it is damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path} is damaged: it is not JSON; remove the file and ask for the report again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(value).__name__}; remove the file.")
    return value


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """The roles of an `evaluation.json`; empty when there is no file. Raises DataError when it is damaged."""
    evaluation = read_object(path)
    for name, role in evaluation.items():
        if not isinstance(role, dict):
            raise DataError(f"{path} holds no object under {name!r}; write it again with `genrec evaluate RUN`.")
    return evaluation


def _read(run: RunDir, config: ExperimentConfig, *, unique: bool) -> ReadRun:
    history, evaluation = read_history(run.metrics_path), read_evaluation(run.evaluation_path)
    if history.is_empty and not evaluation:
        raise DataError(f"{run.root} has recorded nothing yet; start it with `genrec train CONFIG`, then report on it.")
    name = config.name if unique else str(run.root)
    return ReadRun(name, run, config, history, evaluation, read_object(run.environment_path))
