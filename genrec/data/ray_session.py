"""One Ray for the process, and tasks on it: the only things that preparing data asks of Ray."""

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import FrameType
from typing import Any, TypeVar

from genrec.errors import DataError, GenrecError, RunError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_OBJECT_STORE_BYTES = 500 * 2**20
_KNOCK_TIMEOUT_S = 10.0
_LEFT_OVER_S = 30.0  # for tasks that run when another one fails: what they write is cleaned up behind them
_START_ATTEMPTS = 3
_TASKS_PER_CPU = 16  # handed to Ray at a time; a slow one must not leave the others without work
_MIN_CPUS = 2  # logical: one task must be able to run while another one waits for the disk


def ensure_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine; does nothing when Ray is up.

    A local Ray has no dashboard: its dozen processes take half of the start-up time on 2 cores. `ray start --head` and
    RAY_ADDRESS=auto give one. Raises RunError when there is no cluster at RAY_ADDRESS, or Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # `import ray.data` has installed them, where it was; who does not need it is spared a second.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the console; the session's log file keeps everything
            handler.setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
            _take_sigterm()
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"There is no Ray cluster at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS."
            ) from error
    else:
        _start_here(quiet)


def _take_sigterm() -> None:
    """Lets SIGTERM end this process with a sentence: Ray's handlers print the stack of its C++, and abort."""
    if threading.current_thread() is threading.main_thread():  # Python hands out no signals elsewhere
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, b"Ended by SIGTERM; the same command goes on from the last checkpoint.\n")  # print is not reentrant
    sys.exit(128 + number)


def has_ray() -> bool:
    """Whether RAY_ADDRESS names a cluster, or this process is connected to one; does not import Ray."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def _start_here(options: dict[str, Any]) -> None:
    """Starts Ray on this machine. Ray gives its node 30 s to appear, which a busy machine may miss: then once more."""
    import ray

    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=_MIN_CPUS if len(os.sched_getaffinity(0)) < _MIN_CPUS else None,  # Ray counts them itself
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **options,
            )
            _take_sigterm()
            return
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error):
                raise
            _end_processes(error)
            if attempt == _START_ATTEMPTS:
                raise RunError(
                    f"Ray did not start in 30 s, {attempt} times: the machine is busy or out of memory; try again."
                ) from error


def _end_processes(error: Exception) -> None:
    """Ends what Ray's half-started node had started; the node is nowhere but in the error's frames."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if node is not None and hasattr(node, "kill_all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at `host:port`; Ray itself would try for minutes."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def map_tasks(function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT]) -> Iterator[ResultT]:
    """`function(task)` for every task, a core each, wherever the cluster has one; results in the order of the tasks.

    Plain Ray tasks, because a Ray Data pipeline starts two actors for its statistics and its scaling, which cost two
    cores as much as reading some millions of events. `function` must be importable on the workers; tasks and results
    are pickled. The first GenrecError of a task is raised here, without the stack of the worker.
    """
    import ray

    call = ray.remote(call_task)
    num_running = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(tasks)
    running = deque(call.remote(function, task) for task in islice(waiting, num_running))
    try:
        while running:
            result, error = ray.get(running[0])
            running.popleft()
            if error is not None:
                raise error
            running.extend(call.remote(function, task) for task in islice(waiting, 1))
            yield result
    finally:
        # Not cancelled: where a task ends while Ray 2.60 cancels it, Ray ends this process
        # ("Tried to complete task that was not pending").
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_LEFT_OVER_S)


def call_task(function: Callable[[TaskT], ResultT], task: TaskT) -> tuple[ResultT | None, GenrecError | None]:
    """What the function returns, or the user's mistake."""
    try:
        return function(task), None
    except GenrecError as error:
        return None, error
    except OSError as error:
        return None, DataError(f"The prepared data set cannot be written or read: {error}; free some disk space.")
