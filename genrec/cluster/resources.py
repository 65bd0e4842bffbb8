"""What the cluster must have before training starts; a run that can never be placed is refused, not left waiting."""

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError

DATA_CPUS = 0.5
"""Logical CPUs that must stay free for Ray Data: without them the first read never starts, which looks like a hang."""


def check_resources(config: ExperimentConfig) -> None:
    """Raises ConfigError when the connected cluster cannot hold the workers, validate and still read data."""
    import ray

    total = ray.cluster_resources()
    cluster = config.cluster
    cpus, needed = total.get("CPU", 0.0), cluster.workers * cluster.cpus_per_worker
    if needed + DATA_CPUS > cpus:
        raise ConfigError(
            f"cluster.workers * cluster.cpus_per_worker ({cluster.workers} * {cluster.cpus_per_worker} = {needed:g}) "
            f"must leave {DATA_CPUS:g} of the cluster's {cpus:g} CPUs to Ray Data; use fewer workers or "
            f"cluster.cpus_per_worker={max((cpus - 1) / cluster.workers, 0.1):.2g}."
        )
    in_background = config.evaluation.validation == "background"
    validation_cpus, validation_gpus = cluster.validation_cpus, cluster.validation_gpus
    if in_background and needed + DATA_CPUS + validation_cpus > cpus:
        raise ConfigError(
            f"evaluation.validation=background needs cluster.validation_cpus ({validation_cpus:g}) besides the "
            f"{needed:g} CPUs of the workers and {DATA_CPUS:g} for Ray Data, and the cluster has {cpus:g}; use fewer "
            "workers, a smaller cluster.cpus_per_worker or cluster.validation_cpus, or evaluation.validation=inline."
        )
    gpus, needed_gpus = total.get("GPU", 0.0), cluster.workers * cluster.gpus_per_worker
    if needed_gpus > gpus:
        raise ConfigError(
            f"cluster.workers * cluster.gpus_per_worker ({cluster.workers} * {cluster.gpus_per_worker:g} = "
            f"{needed_gpus:g}) is more than the cluster's {gpus:g} GPUs; use fewer workers, or "
            "cluster.gpus_per_worker=0 to train on CPUs."
        )
    if in_background and needed_gpus + validation_gpus > gpus:
        raise ConfigError(
            f"evaluation.validation=background needs cluster.validation_gpus ({validation_gpus:g}) besides the "
            f"{needed_gpus:g} GPUs of the workers, and the cluster has {gpus:g}; use fewer workers, "
            "cluster.validation_gpus=0 to validate on CPUs, or evaluation.validation=inline."
        )
