"""What a sweep writes down. Each file has one writer, and every file is replaced in one step.

SWEEP/
  sweep.yaml          the sweep, as it was first started, with its base config: written once
  sweep.json          all trials, their metrics, costs and errors: written by the command, read by the report
  best.yaml           the config of the best trial, for `genrec train`
  progress/0003.json  one trial's own account: written by the trial
  trials/0003/        the run directory of trial 3; 0003-1, 0003-2, ... after it took over another's checkpoint
  retrained/          a sweep of its own: `genrec tune --retrain-best`
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from genrec.errors import DataError
from genrec.run_dir import write_atomically
from genrec.tuning.space import Params

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "finished", "stopped", "failed", "rejected", "cut"]
"""`stopped`: by the scheduler. `rejected`: before it started. `cut`: by the budget; a larger one goes on with it."""

DONE: tuple[State, ...] = ("finished", "stopped", "failed", "rejected")


def trial_id(number: int) -> str:
    """`0003` for trial 3."""
    return f"{number:04d}"


@dataclass(slots=True)
class Progress:
    """A trial's own account of itself."""

    seconds: float = 0.0
    """Wall time from the start of its process to the end, over all its starts."""
    worker_seconds: float = 0.0
    """The same times the workers that it had reserved."""
    attempts: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Unix times of the begin and the end of every start."""
    step: int = 0
    end_step: int = 0
    epoch: float = 0.0
    events: int = 0
    """Targets that were trained on, those of steps that were trained twice included."""
    events_before: int = 0
    """Those of the runs before it took over another's checkpoint."""
    events_per_s: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry a validation, oldest first: step, epoch, seconds of training, and every metric."""
    life: int = 0
    """Times it took over another trial's checkpoint."""
    params: Params | None = None
    """Settings since then; None where they are those of the record."""
    took_over: list[dict[str, Any]] = field(default_factory=list)
    """From which trial, at which step, with which settings."""
    outcome: Literal["finished", "failed"] | None = None
    error: str | None = None


@dataclass(slots=True)
class Trial:
    """One trial in sweep.json."""

    number: int
    params: Params
    state: State = "waiting"
    reason: str | None = None
    """Why it was rejected, stopped, cut or failed."""
    num_parameters: int | None = None
    workers: int = 1
    progress: Progress = field(default_factory=Progress)
    best: dict[str, float] | None = None
    """The entry of its history with the best first metric."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """95% intervals over users of its best model's validation metrics; only of finished trials."""
    test: dict[str, float] = field(default_factory=dict)
    price: float | None = None
    group: str | None = None
    """In a retraining: the trial whose config it has, or `base`."""

    @property
    def id(self) -> str:
        """Name of its run directory."""
        return trial_id(self.number)

    @property
    def settings(self) -> Params:
        """The settings that it has now."""
        return self.params if self.progress.params is None else self.progress.params


@dataclass(slots=True)
class Sweep:
    """sweep.json."""

    name: str
    metrics: list[str]
    modes: list[str]
    seed: int
    spec: dict[str, Any]
    base: dict[str, Any]
    state: Literal["running", "finished", "out of budget", "interrupted"] = "running"
    reason: str | None = None
    spans: list[list[float]] = field(default_factory=list)
    """Unix times of the begin and the end of every start of the command."""
    trials: list[Trial] = field(default_factory=list)
    importances: dict[str, float] = field(default_factory=dict)
    best: int | None = None
    max_concurrent: int = 1

    @property
    def seconds(self) -> float:
        """Wall time of the command over all its starts."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def worker_seconds(self) -> float:
        """What all trials have cost."""
        return sum(trial.progress.worker_seconds for trial in self.trials)


@dataclass(frozen=True, slots=True)
class SweepDir:
    """Paths inside a sweep's folder. Creating the object touches nothing."""

    root: Path

    @property
    def spec_path(self) -> Path:
        """The sweep as it was first started."""
        return self.root / "sweep.yaml"

    @property
    def record_path(self) -> Path:
        """All trials."""
        return self.root / "sweep.json"

    @property
    def best_path(self) -> Path:
        """The config of the best trial."""
        return self.root / "best.yaml"

    @property
    def trials_path(self) -> Path:
        """Folder of the run directories."""
        return self.root / "trials"

    @property
    def scratch_path(self) -> Path:
        """What Ray Tune writes; nothing is read from it at a next start."""
        return self.root / "ray_tune"

    @property
    def retrained_path(self) -> Path:
        """The sweep that trains the best again."""
        return self.root / "retrained"

    def progress_path(self, trial: str) -> Path:
        """A trial's own account."""
        return self.root / "progress" / f"{trial}.json"

    def run_path(self, trial: str, life: int = 0) -> Path:
        """A trial's run directory."""
        return self.trials_path / run_name(trial, life)


def run_name(trial: str, life: int) -> str:
    """Name of a trial's run directory: a new one whenever it takes over another's checkpoint."""
    return trial if life == 0 else f"{trial}-{life}"


def write_sweep(folder: SweepDir, sweep: Sweep) -> None:
    """Replaces sweep.json."""
    write_atomically(folder.record_path, json.dumps(asdict(sweep), indent=1))


def read_sweep(folder: SweepDir) -> Sweep | None:
    """The sweep in a folder; None where there is none yet. Raises DataError when it cannot be read."""
    if not folder.record_path.is_file():
        return None
    try:
        values = json.loads(folder.record_path.read_text(encoding="utf-8"))
        trials = [Trial(**{**entry, "progress": Progress(**entry["progress"])}) for entry in values.pop("trials")]
        return Sweep(**values, trials=trials)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder.record_path} is damaged, or of another version of genrec ({' '.join(str(error).split())}); start "
            "the sweep over with --fresh, or under another name."
        ) from error


def write_progress(path: Path, progress: Progress) -> None:
    """Replaces a trial's own account."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(progress)))


def read_progress(path: Path) -> Progress:
    """A trial's own account; an empty one where it has not begun."""
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Progress()
    except (ValueError, TypeError) as error:
        logger.warning("%s is not a trial's account (%s) and is not used.", path, error)
        return Progress()
