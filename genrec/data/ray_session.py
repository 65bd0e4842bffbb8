"""One Ray for the process, and tasks on it: the only things that preparing data asks of Ray."""

import contextlib
import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from genrec.errors import DataError, GenrecError, RunError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_OBJECT_STORE_BYTES = 500 * 2**20
_KNOCK_TIMEOUT_S = 10.0
_START_ATTEMPTS = 3
_MIN_CPUS = 2  # logical: one task must be able to run while another one waits for the disk


def ensure_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine; does nothing when Ray is up.

    A local Ray has no dashboard: its dozen processes take half of the start-up time on 2 cores. `ray start --head` and
    RAY_ADDRESS=auto give one. Raises RunError when there is no cluster at RAY_ADDRESS, or Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data  # installs the handlers that the next lines quieten

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
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"There is no Ray cluster at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS."
            ) from error
    else:
        _start_here(quiet)


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


def map_tasks(
    function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], on_done: Callable[[int], None] | None = None
) -> Iterator[ResultT]:
    """`function(task)` for every task as one Ray Data pipeline; results come in the order of the tasks.

    `function` must be importable on the workers; tasks and results are pickled. `on_done` gets the number of finished
    tasks. The first GenrecError of a task is raised here, without the stack of the worker.
    """
    import ray.data

    rows = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _PickledCall(function), batch_size=1, batch_format="pyarrow", zero_copy_batch=True
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    done = 0
    with contextlib.closing(iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))) as batches:
        for batch in batches:
            for outcome in batch["outcome"]:
                result = pickle.loads(outcome.as_py())
                if isinstance(result, GenrecError):
                    raise result
                done += 1
                if on_done is not None:
                    on_done(done)
                yield result


class _PickledCall:
    """The map task: unpickles its task, calls the function, and returns what came out or the user's mistake."""

    def __init__(self, function: Callable[[TaskT], ResultT]) -> None:
        self.function = function
        self.__name__ = function.__name__

    def __call__(self, batch: pa.Table) -> pa.Table:
        outcomes: list[bytes] = []
        for task in batch["task"]:
            outcome: object
            try:
                outcome = self.function(pickle.loads(task.as_py()))
            except GenrecError as error:
                outcome = error
            except OSError as error:
                outcome = DataError(f"The prepared data set cannot be written or read: {error}; free some disk space.")
            outcomes.append(pickle.dumps(outcome))
        return pa.table({"outcome": pa.array(outcomes, pa.binary())})
