"""How many trials run at a time: as many as every one of them finds room for, so that none waits for another's end.

Ray Tune reserves nothing for a trial's workers: they ask for a placement group of their own. Two trials that have half
of their workers each would wait for ever, so the number is computed before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrec.config import ExperimentConfig

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Need:
    """What a trial reserves: workers of so many CPUs and GPUs, and CPUs beside them for reading data and validating."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    data_cpus: float
    validation_cpus: float = 0.0
    validation_gpus: float = 0.0


def need_of(config: ExperimentConfig, data_cpus: float) -> Need:
    """What a trial with this config reserves at the most; of a range of workers, all."""
    cluster, in_background = config.cluster, config.evaluation.validation == "background"
    return Need(
        workers=cluster.max_workers,
        cpus_per_worker=cluster.cpus_per_worker,
        gpus_per_worker=cluster.gpus_per_worker,
        data_cpus=data_cpus,
        validation_cpus=cluster.validation_cpus if in_background else 0.0,
        validation_gpus=cluster.validation_gpus if in_background else 0.0,
    )


def trials_that_fit(need: Need, machines: Sequence[Mapping[str, float]], most: int = 10_000) -> int:
    """How many trials with this need have room at the same time; a worker is on one machine, a trial may be on several.

    `machines` are their resources, as Ray counts them. Parts are placed first where they fit, the largest first.
    """
    free = [[machine.get("CPU", 0.0), machine.get("GPU", 0.0)] for machine in machines]
    parts = [(need.cpus_per_worker, need.gpus_per_worker)] * need.workers
    parts += [(need.data_cpus, 0.0), (need.validation_cpus, need.validation_gpus)]
    parts.sort(reverse=True)
    number = 0
    while number < most and all(_place(part, free) for part in parts):
        number += 1
    return number


def _place(part: tuple[float, float], free: list[list[float]]) -> bool:
    for machine in free:
        if machine[0] + _EPSILON >= part[0] and machine[1] + _EPSILON >= part[1]:
            machine[0] -= part[0]
            machine[1] -= part[1]
            return True
    return False


def concurrency(needs: Sequence[Need], machines: Sequence[Mapping[str, float]], wanted: int | None) -> int:
    """Trials at a time, whichever of `needs` they have; at least 1, because each alone was compared with the machines.

    A range of workers may fit only with fewer than all of them; then trials run one at a time.
    """
    fits = max(1, min(trials_that_fit(need, machines) for need in needs))
    return fits if wanted is None else min(wanted, fits)
