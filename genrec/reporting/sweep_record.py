"""A sweep as its report reads it: sweep.json, plain values. What writes it is `genrec.tuning`, which this knows not."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from genrec.errors import DataError
from genrec.evaluation.seeds import SeedMean, seed_mean

SWEEP_FILE = "sweep.json"
RETRAINED = "retrained"


@dataclass(frozen=True)
class SweepRecord:
    """The content of a sweep.json, and of the one of its retraining where there is one."""

    values: dict[str, Any]
    retrained: dict[str, Any] | None = None

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All trials, in the order they were proposed."""
        return list(self.values["trials"])

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return str(self.values["metrics"][0])

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.values["modes"][0] == "max" else -1

    @cached_property
    def ranked(self) -> list[dict[str, Any]]:
        """The trials that have a value, the best first."""
        known = [
            trial for trial in self.trials if trial["best"] is not None and trial["state"] not in ("failed", "rejected")
        ]
        return sorted(known, key=lambda trial: (-self.sign * trial["best"][self.metric], trial["number"]))

    @property
    def keys(self) -> list[str]:
        """The settings that were searched, in the order of the sweep file."""
        return list(dict.fromkeys(key for trial in self.trials for key in settings_of(trial)))

    @property
    def worker_seconds(self) -> float:
        """What all trials have cost."""
        return sum(float(trial["progress"]["worker_seconds"]) for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Wall time of the command over all its starts."""
        return sum(float(end) - float(begin) for begin, end in self.values["spans"])

    @property
    def overhead(self) -> float | None:
        """The part of that in which no trial's process ran; None where nothing ran at all."""
        spans = sorted(tuple(span) for trial in self.trials for span in trial["progress"]["spans"])
        busy, covered = 0.0, -math.inf
        for begin, end in spans:
            busy += max(0.0, end - max(begin, covered))
            covered = max(covered, end)
        return None if not spans or self.seconds <= 0 else max(0.0, 1 - busy / self.seconds)

    @property
    def price(self) -> float | None:
        """What all trials have cost in money; None without a price."""
        prices = [trial["price"] for trial in self.trials if trial["price"] is not None]
        return sum(prices) if prices else None

    def saved_worker_seconds(self) -> float | None:
        """Worker seconds that stopping early has saved: each stopped trial against the median of the finished.

        None where none was stopped, or none has finished to compare with.
        """
        stopped, finished = (
            [float(trial["progress"]["worker_seconds"]) for trial in self.trials if trial["state"] == state]
            for state in ("stopped", "finished")
        )
        if not stopped or not finished:
            return None
        full = median(finished)
        return sum(max(0.0, full - spent) for spent in stopped)

    def groups(self) -> list["Retrained"]:
        """The configs that were trained again with fresh seeds: the base, then the chosen ones, best first."""
        if self.retrained is None:
            return []
        found: dict[str, list[dict[str, Any]]] = {}
        for trial in self.retrained["trials"]:
            if trial["best"] is not None and trial["state"] == "finished":
                found.setdefault(trial["group"] or "", []).append(trial)
        by_id = {f"{trial['number']:04d}": trial for trial in self.trials}
        return [self._retrained(group, trials, by_id.get(group)) for group, trials in found.items()]

    def _retrained(self, group: str, trials: list[dict[str, Any]], chosen: dict[str, Any] | None) -> "Retrained":
        tested = [trial["test"][self.metric] for trial in trials if self.metric in trial["test"]]
        return Retrained(
            group=group,
            settings={key: value for key, value in settings_of(trials[0]).items() if key != "seed"},
            selected=None if chosen is None else chosen["best"][self.metric],
            validation=seed_mean([trial["best"][self.metric] for trial in trials]),
            test=seed_mean(tested) if tested else None,
        )


@dataclass(frozen=True, slots=True)
class Retrained:
    """A config over fresh seeds; `selected` is the value that it was chosen by, in the sweep."""

    group: str
    settings: dict[str, Any]
    selected: float | None
    validation: SeedMean
    test: SeedMean | None


def settings_of(trial: dict[str, Any]) -> dict[str, Any]:
    """The settings that a trial has now."""
    own = trial["progress"]["params"]
    return dict(trial["params"] if own is None else own)


def is_sweep(path: Path) -> bool:
    """True for a folder that `genrec tune` has made."""
    return (path / SWEEP_FILE).is_file()


def read_record(folder: Path) -> SweepRecord:
    """The sweep in a folder; raises DataError when there is none, or it is damaged."""
    values = _read(folder / SWEEP_FILE)
    if values is None:
        raise DataError(f"{folder} is not a sweep (no {SWEEP_FILE}); give the folder that `genrec tune` printed.")
    return SweepRecord(values, _read(folder / RETRAINED / SWEEP_FILE))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: it is not JSON; start the sweep over with --fresh.") from error
    if not isinstance(values, dict) or "trials" not in values:
        raise DataError(f"{path} does not hold a sweep; start it over with --fresh.")
    return values
