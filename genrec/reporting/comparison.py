"""`genrec compare RUN RUN ...`: runs side by side, each against the first over the same users, or a refusal.

A path is a run directory, or its evaluation-served.json: the same run with options that change who answers.
Metrics are computed anew from the saved ranks, so runs with different `evaluation.ks` compare at the first one's. A
model that writes items knows no rank beyond its own largest cut-off; where the first run asks for more, it is refused.
A number without its protocol compares with nothing: runs whose cards disagree on what was asked are not ranked.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.config import ExperimentConfig
from genrec.data.manifest import file_digest
from genrec.errors import ConfigError, DataError, ProtocolError
from genrec.evaluation.bootstrap import Difference, Interval, intervals, paired_differences
from genrec.evaluation.protocol import OF_THE_RUN, compared_value, protocol_differences
from genrec.evaluation.rank_counts import metric_values, places_of
from genrec.evaluation.user_ranks import UserRanks, read_ranks
from genrec.reporting.history import read_history
from genrec.reporting.seed_groups import SeedGroup, SeedRun, seed_groups
from genrec.run_dir import SERVED_EVALUATION, RunDir, open_run


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run: its metrics with intervals, and what it cost; NaN where it was not recorded.

    `differences` are to the first run, over the `num_shared` users that both were tested on; empty for the first.
    `slices` are those of evaluation.json.
    """

    name: str
    path: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    differences: dict[str, Difference]
    num_users: int
    num_shared: int
    beyond_accuracy: dict[str, float]
    slices: dict[str, Any]
    training_s: float
    events_per_s: float
    num_parameters: float
    of_the_run: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs that may be compared, the first of which is the base; `protocol` is the card that they share.

    `seed_groups` are those of them that differ in their seed alone.
    """

    role: str
    decisive: str
    runs: tuple[ComparedRun, ...]
    seed_groups: tuple[SeedGroup, ...]
    protocol: dict[str, Any]

    @property
    def metrics(self) -> list[str]:
        """The metrics that every run has, in order."""
        return list(self.runs[0].metrics)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What a run directory says about one role; `path` and `name` tell it apart from the same run served otherwise."""

    path: Path
    name: str
    run: RunDir
    config: ExperimentConfig
    values: dict[str, Any]
    ranks: UserRanks

    @property
    def served(self) -> bool:
        return self.path.name == SERVED_EVALUATION


def compare_runs(paths: Sequence[Path], role: str) -> Comparison:
    """The comparison of at least two runs on the users of `role`.

    Raises ProtocolError when the runs' protocols differ, DataError when a run was not evaluated, its ranks are missing
    or end before the first run's cut-offs, ConfigError when there are not two different runs.
    """
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise ConfigError(f"compare needs two different runs or more, not {[str(path) for path in paths]}.")
    recorded = [_read(path, role) for path in paths]
    base = recorded[0]
    _refuse_other_protocols(recorded)
    _refuse_short_lists(recorded)
    ks, decisive = base.config.evaluation.ks, base.config.evaluation.metric
    names = Counter(entry.name for entry in recorded)
    card = base.values["protocol"]
    runs = tuple(_compared(entry, base, ks, unique=names[entry.name] == 1) for entry in recorded)
    return Comparison(
        role=role,
        decisive=decisive,
        runs=runs,
        seed_groups=seed_groups(
            [
                SeedRun(run.name, entry.config, run.metrics)
                for run, entry in zip(runs, recorded, strict=True)
                if not entry.served
            ]
        ),
        protocol={name: compared_value(card, name) for name in card if name not in OF_THE_RUN},
    )


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON: `--json` prints it. What was not recorded is null."""
    return {
        "role": comparison.role,
        "decisive": comparison.decisive,
        "protocol": comparison.protocol,
        "runs": [_run_json(run) for run in comparison.runs],
        "seed_groups": [
            {
                "runs": list(group.names),
                "seeds": list(group.seeds),
                "metrics": {name: {"mean": mean, "spread": spread} for name, (mean, spread) in group.metrics.items()},
            }
            for group in comparison.seed_groups
        ],
    }


def _run_json(run: ComparedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": run.path,
        "num_users": run.num_users,
        "num_shared": run.num_shared,
        "metrics": run.metrics,
        "intervals": run.intervals,
        "differences": {
            name: {"value": found.value, "interval": [found.low, found.high], "verdict": found.verdict}
            for name, found in run.differences.items()
        },
        "beyond_accuracy": run.beyond_accuracy,
        "slices": run.slices,
        "training_s": _finite(run.training_s),
        "events_per_s": _finite(run.events_per_s),
        "num_parameters": _finite(run.num_parameters),
        "of_the_run": run.of_the_run,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read(path: Path, role: str) -> _Recorded:
    served = path.name == SERVED_EVALUATION
    folder = path.parent if served else path
    run, config = open_run(folder)
    again = f"run `genrec evaluate {folder}`" + (" with --rerank or --map" if served else "")
    file = run.served_evaluation_path if served else run.evaluation_path
    if not file.is_file():
        raise DataError(f"{folder} has no {file.name}: it is not finished, or was never evaluated so; {again}.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))[role]
        step, _ = int(values["best_step"]), dict(values["protocol"])
    except KeyError as error:
        raise DataError(f"{file} has no {error} for {role}; {again}.") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); {again}.") from error
    ranks_path = run.ranks_path(role, served=served)
    ranks = read_ranks(ranks_path)
    if ranks.step != step or len(ranks.users) == 0:
        raise DataError(
            f"{ranks_path} is of step {ranks.step} and {file.name} of step {step}: one of them is left "
            f"from an earlier evaluation; {again}."
        )
    if values.get("ranks_sha256") not in (None, file_digest(ranks_path)):  # None: written before there were digests
        raise DataError(
            f"{ranks_path} holds other ranks than those that {file.name} was made of: one of them is left from another "
            f"evaluation; {again}."
        )
    return _Recorded(path, config.name + (" (served)" if served else ""), run, config, values, ranks)


def _refuse_other_protocols(recorded: Sequence[_Recorded]) -> None:
    base = recorded[0]
    problems = []
    for entry in recorded[1:]:
        differences = protocol_differences(base.values["protocol"], entry.values["protocol"])
        if differences:
            problems.append(f"{base.path} and {entry.path}: " + "; ".join(differences))
    if problems:
        raise ProtocolError(
            "Numbers made under different protocols cannot be ranked, so nothing is compared.\n  "
            + "\n  ".join(problems)
        )


def _refuse_short_lists(recorded: Sequence[_Recorded]) -> None:
    """A model that writes items has a list of them, as long as its largest cut-off (evaluation/listing.py)."""
    wanted = max(recorded[0].config.evaluation.ks)
    for entry in recorded[1:]:
        listed = max(entry.config.evaluation.ks)
        if entry.config.writes_codes and listed < wanted:
            raise DataError(
                f"{entry.run.root} writes lists of {listed} items, so its ranks do not reach the cut-off {wanted} of "
                f"{recorded[0].run.root}, at whose cut-offs runs are compared; name the run with the smallest "
                "evaluation.ks first."
            )


def _compared(entry: _Recorded, base: _Recorded, ks: Sequence[int], *, unique: bool) -> ComparedRun:
    counts = np.bincount(places_of(entry.ranks.ranks, max(ks)), minlength=max(ks) + 1)
    differences: dict[str, Difference] = {}
    num_shared = len(entry.ranks.users)
    if entry is not base:
        shared, mine, theirs = np.intersect1d(
            entry.ranks.users, base.ranks.users, assume_unique=True, return_indices=True
        )
        num_shared = len(shared)
        if num_shared == 0:
            raise DataError(f"{entry.path} and {base.path} share no user; evaluate both again.")
        differences = paired_differences(entry.ranks.ranks[mine], base.ranks.ranks[theirs], ks)
    history = read_history(entry.run.metrics_path)
    training_s, events_per_s = history.last("elapsed_s"), history.median("events_per_s")
    card = entry.values["protocol"]
    return ComparedRun(
        name=entry.name if unique else str(entry.path),
        path=str(entry.path),
        metrics=metric_values(counts, ks),
        intervals=intervals(counts, ks),
        differences=differences,
        num_users=entry.ranks.num_users,
        num_shared=num_shared,
        beyond_accuracy=dict(entry.values.get("beyond_accuracy") or {}),
        slices=dict(entry.values.get("slices") or {}),
        training_s=math.nan if training_s is None else training_s,
        events_per_s=math.nan if events_per_s is None else events_per_s,
        num_parameters=float(entry.values.get("num_parameters") or math.nan),
        of_the_run={name: card[name] for name in OF_THE_RUN if name in card} | {"step": entry.ranks.step},
    )
