"""What the cluster must have: room for the workers, and a CPU for Ray Data. A run that can never start is refused."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genrec.cluster.memory import check_cluster_memory
from genrec.cluster.room import DATA_CPUS, Machine, check_room
from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, RunError

logger = logging.getLogger(__name__)

WAIT_LOOK_S = 2.0
"""Seconds between two looks at the machines while a start waits for them."""

RESERVE_TIMEOUT_S = 180.0
"""Time after which Ray forgets a reservation whose driver has died; it is renewed three times as often."""


def check_resources(config: ExperimentConfig, *, also_free: bool = False) -> None:
    """Raises ConfigError when the cluster cannot hold the workers (of a range, the fewest), validate and read data,
    or when a worker needs more memory than any of its machines has.

    With `placement.wait_s` it waits that long for machines that are still to come, and asks an autoscaler for them;
    with `also_free` it also waits until other jobs hold no part of the room. Then it raises RunError with what is
    missing. Without `placement.wait_s` Ray Train asks for what others hold until it gets it.
    """
    wait_s = config.placement.wait_s
    deadline = time.monotonic() + wait_s
    asked = said = False
    while True:
        held = ""
        try:
            check_room(config, alive_machines())
            if also_free and wait_s:
                held = " others still hold a part, and of what is free"
                check_room(config, _free_machines())
            break
        except ConfigError as error:
            if not wait_s:
                raise
            if time.monotonic() >= deadline:
                raise RunError(f"After placement.wait_s ({wait_s:g} s){held}: {error}") from error
            if not said:
                what = "what others hold" if held else "machines"
                logger.warning("Waiting up to %g s for %s. %s", wait_s, what, error)
                said = True
            if not held and not asked:
                _ask_autoscaler(config)
                asked = True
        time.sleep(min(WAIT_LOOK_S, max(deadline - time.monotonic(), 0.0)))
    if asked:
        _ask_autoscaler(None)  # from here on Ray Train asks for what it needs
    if os.environ.get("RAY_ADDRESS"):  # else the cluster is this machine, which was judged before anything started
        check_cluster_memory(config, alive_machines())


def alive_machines() -> list[Machine]:
    """The machines of the cluster that are alive; Ray must be up."""
    import ray

    return [_machine(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _free_machines() -> list[Machine]:
    """The same with what nobody holds of them; up to some seconds old."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [_machine(node, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


def _machine(node: dict[str, Any], resources: dict[str, float]) -> Machine:
    memory = resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0)
    return Machine(resources.get("CPU", 0.0), resources.get("GPU", 0.0), node.get("Labels", {}), memory)


def _ask_autoscaler(config: ExperimentConfig | None) -> None:
    """Asks for the fewest workers and Ray Data's CPU, or takes that back; a cluster without autoscaler ignores it."""
    from ray.autoscaler.sdk import request_resources

    if config is None:
        request_resources(bundles=[])
        return
    cluster, placement = config.cluster, config.placement
    worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    request_resources(
        bundles=[*[worker] * cluster.min_workers, {"CPU": DATA_CPUS}],
        bundle_label_selectors=[*[placement.worker_labels or {}] * cluster.min_workers, placement.data_labels or {}],
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
            **({"label_selectors": [config.placement.data_labels]} if config.placement.data_labels else {}),
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
