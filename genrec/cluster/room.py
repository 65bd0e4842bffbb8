"""Whether a cluster has room for a run: rules over machines, asked when training starts and before a job is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError

DATA_CPUS = 1.0
"""Logical CPUs of one Ray Data task. They must stay free: without them the first read never starts; the run hangs."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of a Ray cluster: what it has in all, free or not, and its labels.

    `memory_bytes` is what Ray found free when the node started, 0 where that is not known.
    """

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: float = 0.0

    def has(self, wanted: Mapping[str, str] | None) -> bool:
        """Whether it carries all of the `wanted` labels."""
        return all(self.labels.get(name) == value for name, value in (wanted or {}).items())


def check_room(config: ExperimentConfig, machines: Sequence[Machine]) -> None:
    """Raises ConfigError when `machines` cannot hold the workers (of a range, the fewest), validate and read data."""
    _check_labels(config, machines)
    _check_sums(config, machines)
    _check_machines(config, machines)


def _check_labels(config: ExperimentConfig, machines: Sequence[Machine]) -> None:
    for setting, wanted in (
        ("placement.worker_labels", config.placement.worker_labels),
        ("placement.data_labels", config.placement.data_labels),
    ):
        if wanted and not any(machine.has(wanted) for machine in machines):
            raise ConfigError(
                f"{setting} ({_labels(wanted)}) must be on some machine, and none of the cluster's {len(machines)} has "
                f"{'them' if len(wanted) > 1 else 'it'}; start nodes with `ray start --labels`, or change the setting."
            )


def _check_sums(config: ExperimentConfig, machines: Sequence[Machine]) -> None:
    cluster = config.cluster
    workers = cluster.min_workers
    cpus = sum(machine.cpus for machine in machines)
    needed = workers * cluster.cpus_per_worker
    if needed + DATA_CPUS > cpus:
        raise ConfigError(
            f"cluster.workers * cluster.cpus_per_worker ({workers} * {cluster.cpus_per_worker} = {needed:g}) "
            f"must leave {DATA_CPUS:g} of the cluster's {cpus:g} CPUs to Ray Data; use fewer workers or "
            f"cluster.cpus_per_worker={max((cpus - 1) / workers, 0.1):.2g}."
        )
    in_background = config.evaluation.validation == "background"
    validation_cpus, validation_gpus = cluster.validation_cpus, cluster.validation_gpus
    if in_background and needed + DATA_CPUS + validation_cpus > cpus:
        raise ConfigError(
            f"evaluation.validation=background needs cluster.validation_cpus ({validation_cpus:g}) besides the "
            f"{needed:g} CPUs of the workers and {DATA_CPUS:g} for Ray Data, and the cluster has {cpus:g}; use fewer "
            "workers, a smaller cluster.cpus_per_worker or cluster.validation_cpus, or evaluation.validation=inline."
        )
    gpus, needed_gpus = sum(machine.gpus for machine in machines), workers * cluster.gpus_per_worker
    if needed_gpus > gpus:
        raise ConfigError(
            f"cluster.workers * cluster.gpus_per_worker ({workers} * {cluster.gpus_per_worker:g} = "
            f"{needed_gpus:g}) is more than the cluster's {gpus:g} GPUs; use fewer workers, or "
            "cluster.gpus_per_worker=0 to train on CPUs."
        )
    if in_background and needed_gpus + validation_gpus > gpus:
        raise ConfigError(
            f"evaluation.validation=background needs cluster.validation_gpus ({validation_gpus:g}) besides the "
            f"{needed_gpus:g} GPUs of the workers, and the cluster has {gpus:g}; use fewer workers, "
            "cluster.validation_gpus=0 to validate on CPUs, or evaluation.validation=inline."
        )


def _check_machines(config: ExperimentConfig, machines: Sequence[Machine]) -> None:
    """Raises ConfigError when there is enough in sum, and too little of it on each machine: a worker is on one."""
    cluster, placement = config.cluster, config.placement
    eligible = [machine for machine in machines if machine.has(placement.worker_labels)]

    def workers_on(machine: Machine, taken_cpus: float) -> int:
        fit = [(machine.cpus - taken_cpus) / cluster.cpus_per_worker]
        if cluster.gpus_per_worker:
            fit.append(machine.gpus / cluster.gpus_per_worker)
        whole = int(max(min(fit), 0.0) + 1e-6)
        return min(whole, 1) if placement.strategy == "STRICT_SPREAD" else whole

    together = max if placement.strategy == "STRICT_PACK" else sum
    most = max(
        (
            together([workers_on(other, DATA_CPUS if other is reader else 0.0) for other in eligible] or [0])
            for reader in machines
            if reader.cpus >= DATA_CPUS and reader.has(placement.data_labels)
        ),
        default=0,
    )
    if most < cluster.min_workers:
        sizes = ", ".join(f"{machine.cpus:g} CPUs {machine.gpus:g} GPUs" for machine in eligible[:8])
        how = {
            "STRICT_PACK": ", and placement.strategy=STRICT_PACK wants all on one",
            "STRICT_SPREAD": ", and placement.strategy=STRICT_SPREAD wants each on a machine of its own",
        }.get(placement.strategy, "")
        where = f"with {_labels(placement.worker_labels)}: " if placement.worker_labels else ""
        raise ConfigError(
            f"cluster.workers ({cluster.min_workers}) of {cluster.cpus_per_worker:g} CPUs and "
            f"{cluster.gpus_per_worker:g} GPUs do not fit beside {DATA_CPUS:g} CPU for Ray Data, because a worker must "
            f"fit one machine ({where}{sizes}{', ...' if len(eligible) > 8 else ''}){how}: {most or 'none'} do; use "
            "fewer workers, or smaller ones."
        )


def _labels(labels: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (labels or {}).items())
