"""Runs that differ in their seed alone, together: mean and spread, as published tables have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from genrec.config import ExperimentConfig
from genrec.config_neutral import NEUTRAL, is_covered
from genrec.run_dir import config_differences

OWN = ("name", "seed", "runs_dir")
LENGTH = ("train.max_epochs", "train.max_steps")
"""A refit has its own, which the run that it was made of has chosen."""


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
    alike: list[dict[int, SeedRun]] = []
    for run in runs:
        group = next((group for group in alike if _is_alike(run.config, next(iter(group.values())).config)), None)
        if group is None:
            alike.append({run.config.seed: run})
        else:
            group.setdefault(run.config.seed, run)
    return tuple(_group(tuple(group.values())) for group in alike if len(group) > 1)


def _is_alike(one: ExperimentConfig, other: ExperimentConfig) -> bool:
    free = (*OWN, *NEUTRAL, "batch.packed_parts", *(LENGTH if one.refits and other.refits else ()))
    return one.batch.parts_packed_for == other.batch.parts_packed_for and all(
        is_covered(text.partition(":")[0], free) for text in config_differences(one, other)
    )


def _group(runs: Sequence[SeedRun]) -> SeedGroup:
    return SeedGroup(
        names=tuple(run.name for run in runs),
        seeds=tuple(run.config.seed for run in runs),
        metrics={
            name: (fmean(run.metrics[name] for run in runs), stdev(run.metrics[name] for run in runs))
            for name in runs[0].metrics
        },
    )
