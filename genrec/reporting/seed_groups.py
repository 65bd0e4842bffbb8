"""Runs that differ in their seed alone, together: mean and spread, as published tables have them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from genrec.config import ExperimentConfig

NOT_THE_MODEL = {"name", "seed", "runs_dir", "cluster", "placement", "faults", "tracking"}
"""Sections that decide where and under what name a run is trained, and not what comes of it."""


class SeedRun(NamedTuple):
    """What is read of a run: its name in the comparison, its config and its metrics."""

    name: str
    config: ExperimentConfig
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs of one config, each of another seed; `metrics` are mean and standard deviation over these runs."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, tuple[float, float]]


def seed_groups(runs: Sequence[SeedRun]) -> tuple[SeedGroup, ...]:
    """The groups of two runs and more, in the order of their first; of runs with the same seed the first counts."""
    alike: dict[str, dict[int, SeedRun]] = {}
    for run in runs:
        config = run.config.model_dump(mode="json", exclude=NOT_THE_MODEL)
        alike.setdefault(json.dumps(config, sort_keys=True), {}).setdefault(run.config.seed, run)
    return tuple(_group(tuple(group.values())) for group in alike.values() if len(group) > 1)


def _group(runs: Sequence[SeedRun]) -> SeedGroup:
    return SeedGroup(
        names=tuple(run.name for run in runs),
        seeds=tuple(run.config.seed for run in runs),
        metrics={
            name: (fmean(run.metrics[name] for run in runs), stdev(run.metrics[name] for run in runs))
            for name in runs[0].metrics
        },
    )
