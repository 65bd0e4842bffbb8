"""What the cluster must have: room for the workers, and a CPU for Ray Data. A run that can never start is refused."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, RunError

DATA_CPUS = 1.0
"""Logical CPUs of one Ray Data task. They must stay free: without them the first read never starts; the run hangs."""

RESERVE_TIMEOUT_S = 180.0
"""Time after which Ray forgets a reservation whose driver has died; it is renewed three times as often."""


def check_resources(config: ExperimentConfig) -> None:
    """Raises ConfigError when the cluster cannot hold the workers (of a range, the fewest), validate and read data."""
    import ray

    total = ray.cluster_resources()
    cluster = config.cluster
    workers = cluster.min_workers
    cpus, needed = total.get("CPU", 0.0), workers * cluster.cpus_per_worker
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
    gpus, needed_gpus = total.get("GPU", 0.0), workers * cluster.gpus_per_worker
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
    _check_machines(config)


def _check_machines(config: ExperimentConfig) -> None:
    """Raises ConfigError when there is enough in sum, and too little of it on each machine: a worker is on one."""
    import ray

    cluster = config.cluster
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def workers_on(machine: dict[str, float], taken_cpus: float) -> int:
        fit = [(machine.get("CPU", 0.0) - taken_cpus) / cluster.cpus_per_worker]
        if cluster.gpus_per_worker:
            fit.append(machine.get("GPU", 0.0) / cluster.gpus_per_worker)
        return int(min(fit) + 1e-6)

    most = max(
        (
            sum(workers_on(other, DATA_CPUS if other is machine else 0.0) for other in machines)
            for machine in machines
            if machine.get("CPU", 0.0) >= DATA_CPUS
        ),
        default=0,
    )
    if most < cluster.min_workers:
        sizes = ", ".join(f"{machine.get('CPU', 0):g} CPUs {machine.get('GPU', 0):g} GPUs" for machine in machines[:8])
        raise ConfigError(
            f"cluster.workers ({cluster.min_workers}) of {cluster.cpus_per_worker:g} CPUs and "
            f"{cluster.gpus_per_worker:g} GPUs do not fit beside {DATA_CPUS:g} CPU for Ray Data, because a worker must "
            f"fit one machine ({sizes}{', ...' if len(machines) > 8 else ''}): {most or 'none'} do; use fewer "
            "workers, or smaller ones."
        )


@contextmanager
def data_cpus_reserved(config: ExperimentConfig, requester: str) -> Iterator[None]:
    """Keeps a range of workers from growing into the last CPUs; a fixed number was compared with the cluster already.

    Ray Train takes what Ray's coordinator has not promised to others: of two requests of the same priority, the older
    one is served first. So Ray Data's share is asked for before the trainer starts, and asked for again until it ends.
    """
    if config.cluster.min_workers == config.cluster.max_workers:
        yield
        return
    import ray
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    cluster, in_background = config.cluster, config.evaluation.validation == "background"
    coordinator, ended = get_or_create_autoscaling_coordinator(), threading.Event()

    def ask() -> ray.ObjectRef:
        return coordinator.request_resources.remote(
            requester_id=requester,
            resources=[{"CPU": DATA_CPUS + (cluster.validation_cpus if in_background else 0.0)}],
            expire_after_s=RESERVE_TIMEOUT_S,
            priority=ResourceRequestPriority.HIGH,
        )

    def renew() -> None:
        while not ended.wait(RESERVE_TIMEOUT_S / 3):
            ask()

    try:
        ray.get(ask(), timeout=60)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            "Ray did not answer within 60 s; the machine is busy or its memory is full, try again."
        ) from error
    thread = threading.Thread(target=renew, name="data-cpus", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        coordinator.cancel_request.remote(requester)
