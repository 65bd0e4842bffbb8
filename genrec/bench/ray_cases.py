"""Measurements as Ray tasks: each reserves what its workers need on a machine, so that none shares cores with others.

A measurement's workers run on one machine. One without `cluster.threads_per_worker` takes the cores of a machine for
its workers, so it reserves a whole one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from genrec.bench.processes import Task, run_task
from genrec.bench.result import Row
from genrec.bench.worker import one_line
from genrec.data.ray_session import ensure_ray
from genrec.errors import ConfigError


def run_tasks(tasks: Sequence[Task]) -> Iterator[tuple[Task, Row]]:
    """Every task with its row, in the order in which they are done.

    Raises ConfigError before anything is measured when no machine of the cluster has room for a task.
    """
    import ray

    ensure_ray()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = [_needs(task, machines) for task in tasks]
    call = ray.remote(max_retries=0)(run_task)
    waiting = {
        call.options(num_cpus=cpus, num_gpus=gpus).remote(task): task
        for task, (cpus, gpus) in zip(tasks, needs, strict=True)
    }
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(done[0])
            yield task, _row(done[0], task)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _needs(task: Task, machines: Sequence[dict[str, float]]) -> tuple[float, float]:
    """CPUs and GPUs of a task."""
    cluster = task.config["cluster"]
    gpus = task.workers * math.ceil(cluster["gpus_per_worker"])
    fitting = [machine.get("CPU", 0.0) for machine in machines if machine.get("GPU", 0.0) >= gpus]
    threads = cluster["threads_per_worker"]
    # Without a number of threads the workers share all the cores of whatever machine they are on.
    cpus = max(fitting, default=1.0) if threads is None else task.workers * float(threads)
    if not fitting or cpus > max(fitting):
        raise ConfigError(
            f"Case {task.columns['case']} needs {cpus:g} CPUs and {gpus} GPUs on one machine (cluster.workers "
            f"{task.workers}, cluster.threads_per_worker {threads}), and the largest that fits has "
            f"{max(fitting, default=0):g} CPUs; lower one of them, or use --launcher local."
        )
    return cpus, float(gpus)


def _row(reference: Any, task: Task) -> Row:
    """The row of a task that is done; one whose machine or process is gone has a row too."""
    import ray

    try:
        row: Row = ray.get(reference)
    except ray.exceptions.OutOfMemoryError as error:
        return {**task.columns, "status": "out-of-memory", "error": one_line(error), "workers": task.workers}
    except ray.exceptions.RayError as error:
        return {**task.columns, "status": "failed", "error": one_line(error), "workers": task.workers}
    return row
