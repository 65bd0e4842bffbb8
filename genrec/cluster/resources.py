"""What the cluster must have before training starts; a run that can never be placed is refused, not left waiting."""

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError

DATA_CPUS = 0.5
"""Logical CPUs that must stay free for Ray Data: without them the first read never starts, which looks like a hang."""


def check_resources(config: ExperimentConfig) -> None:
    """Raises ConfigError when the connected cluster cannot hold the workers and still read data."""
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
    gpus, needed_gpus = total.get("GPU", 0.0), cluster.workers * cluster.gpus_per_worker
    if needed_gpus > gpus:
        raise ConfigError(
            f"cluster.workers * cluster.gpus_per_worker ({cluster.workers} * {cluster.gpus_per_worker:g} = "
            f"{needed_gpus:g}) is more than the cluster's {gpus:g} GPUs; use fewer workers, or "
            "cluster.gpus_per_worker=0 to train on CPUs."
        )
