"""What a run has recorded, as one story: the starts, the training curve and the validations.

A killed run resumes from its last checkpoint and does some steps again. The report shows the steps that led to the
weights: a start at step `s` takes back what was recorded after `s`, and of two lines about one step the later one wins.
"""

import math
from collections.abc import Iterator
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
    """One start of the training processes; `startup` holds the seconds of each phase before the first step, `cautions`
    what the run said of its settings (training/cautions.py).
    """

    step: int
    time_s: float
    workers: int | None
    launcher: str
    resumed: bool
    startup: dict[str, float]
    num_repeated_steps: int
    cautions: tuple[str, ...] = ()


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
    def events_trained(self) -> Floats:
        """Events trained on up to each training line [num_lines]: epochs done times the events of an epoch.

        The events of an epoch are the median over the lines of throughput times time over epochs done in it, so that
        a validation, whose time a line may hold, does not count.
        """
        epochs = self.train["epoch"]
        if len(epochs) < 2:
            return np.full(len(epochs), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            elapsed = np.diff(self.train["elapsed_s"])
            per_epoch = self.train["events_per_s"][1:] * elapsed / np.diff(epochs)
        known = per_epoch[np.isfinite(per_epoch) & (per_epoch > 0)]
        return epochs * (float(np.median(known)) if len(known) else np.nan)

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
        """The first with the highest `metric` of the validations that the run called best, else of all.

        A validation in the background may arrive late, so one that the run once called best may not be any more.
        """
        marked = [validation for validation in self.validations if validation.best]
        measured = [v for v in marked or self.validations if math.isfinite(v.metrics.get(metric, math.nan))]
        last_marked = marked[-1] if marked else None
        return max(measured, key=lambda validation: validation.metrics[metric], default=last_marked)


def read_history(path: Path) -> History:
    """The history in a `metrics.jsonl`, empty when there is no file; raises DataError on a line without a step."""
    records = read_metrics(path)
    for position, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not math.isfinite(_float(record.get("step"))):
            raise DataError(f"{path} record {position} has no step; remove the line, genrec did not write it.")
    train = _standing(records, "train")
    times = (_float(record.get("time_s")) for record in reversed(records))
    return History(
        starts=tuple(_starts(records)),
        train={name: np.array([_float(line.get(name)) for line in train]) for name in TRAIN_COLUMNS},
        validations=tuple(_validation(record) for record in _standing(records, "validation")),
        last_time_s=next((time_s for time_s in times if math.isfinite(time_s)), math.nan),
    )


def _standing(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of a kind that no later start or line has replaced, by step."""
    standing: dict[int, dict[str, Any]] = {}
    taken_back_after = math.inf
    for record in reversed(records):
        step = int(record["step"])
        if record.get("kind") == "start":
            taken_back_after = min(taken_back_after, step)
        elif record.get("kind") == kind and step <= taken_back_after:
            standing.setdefault(step, record)
    return [standing[step] for step in sorted(standing)]


def _starts(records: list[dict[str, Any]]) -> Iterator[Start]:
    last_step = 0
    for record in records:
        step = int(record["step"])
        if record.get("kind") == "start":
            yield _start(step, record, max(last_step - step, 0))
            last_step = step
        elif record.get("kind") in ("train", "validation"):
            last_step = max(last_step, step)


def _start(step: int, record: dict[str, Any], num_repeated_steps: int) -> Start:
    startup, cautions = record.get("startup"), record.get("cautions")
    workers = _float(record.get("workers"))
    return Start(
        step=step,
        time_s=_float(record.get("time_s")),
        workers=int(workers) if math.isfinite(workers) else None,
        launcher=str(record.get("launcher", "")),
        resumed=bool(record.get("resumed")),
        startup={str(k): _float(v) for k, v in startup.items()} if isinstance(startup, dict) else {},
        num_repeated_steps=num_repeated_steps,
        cautions=tuple(map(str, cautions)) if isinstance(cautions, list) else (),
    )


def _validation(record: dict[str, Any]) -> Validation:
    return Validation(
        step=int(record["step"]),
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
