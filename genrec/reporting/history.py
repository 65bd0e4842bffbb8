"""What a run has recorded, as one story: the starts, the training curve and the validations.

A killed run resumes from its last checkpoint and does some steps again. The report shows the steps that led to the
weights: a start at step `s` takes back what was recorded after `s`, and of two lines about one step the later one wins.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.run_dir import read_metrics

Floats = npt.NDArray[np.float64]

TRAIN_COLUMNS = (
    "step",
    "epoch",
    "time_s",
    "elapsed_s",
    "loss",
    "lr",
    "gradient_norm",
    "events_per_s",
    "data_wait_fraction",
    "memory_bytes",
)


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the training processes; `startup` holds the seconds of each phase before the first step."""

    step: int
    time_s: float
    workers: int | None
    launcher: str
    resumed: bool
    startup: dict[str, float]
    num_repeated_steps: int


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation of the weights at `step`."""

    step: int
    epoch: float
    elapsed_s: float
    seconds: float
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True, slots=True)
class History:
    """Starts and validations in order; `train` maps TRAIN_COLUMNS to arrays [num_lines], NaN where unknown."""

    starts: tuple[Start, ...]
    train: dict[str, Floats]
    validations: tuple[Validation, ...]
    last_time_s: float

    @property
    def is_empty(self) -> bool:
        """True when nothing at all was recorded."""
        return not (self.starts or self.validations or self.num_lines)

    @property
    def num_lines(self) -> int:
        """Training lines, one every `train.log_every_steps` steps."""
        return len(self.train["step"])

    @property
    def restart_steps(self) -> list[int]:
        """The steps at which the run was resumed."""
        return [start.step for start in self.starts if start.resumed]

    @property
    def last_step(self) -> int:
        """The last step that anything was recorded about."""
        steps = [*(start.step for start in self.starts), *(validation.step for validation in self.validations)]
        return max([*steps, *self.train["step"][-1:].astype(int).tolist()], default=0)

    def last(self, column: str) -> float | None:
        """The last finite value of a training column."""
        values = self._finite(column)
        return float(values[-1]) if len(values) else None

    def median(self, column: str) -> float | None:
        """The median of a training column's finite values."""
        values = self._finite(column)
        return float(np.median(values)) if len(values) else None

    def largest(self, column: str) -> float | None:
        """The largest finite value of a training column."""
        values = self._finite(column)
        return float(values.max()) if len(values) else None

    def _finite(self, column: str) -> Floats:
        values = self.train[column]
        return values[np.isfinite(values)]

    def best_validation(self, metric: str) -> Validation | None:
        """The last validation that the run called best; else the first with the highest `metric`."""
        marked = [validation for validation in self.validations if validation.best]
        if marked:
            return marked[-1]
        measured = [v for v in self.validations if math.isfinite(v.metrics.get(metric, math.nan))]
        return max(measured, key=lambda validation: validation.metrics[metric], default=None)


def read_history(path: Path) -> History:
    """The history in a `metrics.jsonl`, empty when there is no file; raises DataError on a line without a step."""
    starts: list[Start] = []
    train: dict[int, dict[str, Any]] = {}
    validations: dict[int, Validation] = {}
    last_time_s = math.nan
    for position, record in enumerate(read_metrics(path), start=1):
        if not isinstance(record, dict) or not math.isfinite(_float(record.get("step"))):
            raise DataError(f"{path} record {position} has no step; remove the line, genrec did not write it.")
        step = int(record["step"])
        time_s = _float(record.get("time_s"))
        last_time_s = time_s if math.isfinite(time_s) else last_time_s
        kind = record.get("kind")
        if kind == "train":
            train[step] = record
        elif kind == "validation":
            validations[step] = _validation(step, record)
        elif kind == "start":
            last_done = max([*train, *validations, *(start.step for start in starts)], default=step)
            starts.append(_start(step, record, max(last_done - step, 0)))
            train = {done: line for done, line in train.items() if done <= step}
            validations = {done: line for done, line in validations.items() if done <= step}
    ordered = [train[step] for step in sorted(train)]
    columns = {name: np.array([_float(line.get(name)) for line in ordered]) for name in TRAIN_COLUMNS}
    return History(tuple(starts), columns, tuple(validations[step] for step in sorted(validations)), last_time_s)


def _start(step: int, record: dict[str, Any], num_repeated_steps: int) -> Start:
    startup = record.get("startup")
    workers = _float(record.get("workers"))
    return Start(
        step=step,
        time_s=_float(record.get("time_s")),
        workers=int(workers) if math.isfinite(workers) else None,
        launcher=str(record.get("launcher", "")),
        resumed=bool(record.get("resumed")),
        startup={str(k): _float(v) for k, v in startup.items()} if isinstance(startup, dict) else {},
        num_repeated_steps=num_repeated_steps,
    )


def _validation(step: int, record: dict[str, Any]) -> Validation:
    return Validation(
        step=step,
        epoch=_float(record.get("epoch")),
        elapsed_s=_float(record.get("elapsed_s")),
        seconds=_float(record.get("seconds")),
        metrics=metric_values(record.get("metrics")),
        best=bool(record.get("best")),
    )


def metric_values(values: Any) -> dict[str, float]:
    """The numbers of a JSON object by name; empty when it is not an object."""
    return {str(k): _float(v) for k, v in values.items()} if isinstance(values, dict) else {}


def _float(value: Any) -> float:
    """A JSON number as a float; NaN for null, text or nothing."""
    return float(value) if isinstance(value, int | float) else math.nan
