"""Where the tasks of `genrec prepare` run: on the Ray cluster there is, else in processes of this machine.

Ray takes several seconds to start and half a gigabyte to be there, which is more than most logs need. Without a cluster
it would give nothing for that, and a log can be prepared where Ray is not installed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from genrec.data.ray_session import call_task, ensure_ray, has_ray, map_tasks
from genrec.errors import RunError

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Calls a function for every task, somewhere, and hands out what it returns in the order of the tasks."""

TASK_BYTES = 2**30  # memory that a task may need: a run or a shard of 2 million events takes less than half of it


@contextmanager
def open_tasks() -> Iterator[RunTasks]:
    """What runs tasks, until the end of the block: on Ray where RAY_ADDRESS names a cluster or Ray is up already."""
    if has_ray():
        ensure_ray()
        yield map_tasks
        return
    # New processes, not forks: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes(), mp_context=context, initializer=_begin) as pool:

        def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            return _in_order(pool, function, tasks)

        yield run


def num_processes() -> int:
    """One for each core, as long as all of them together need at most half of the memory."""
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), total_bytes // 2 // TASK_BYTES))


def _in_order(pool: ProcessPoolExecutor, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """The first GenrecError of a task is raised without a trace; RunError when a process ends by itself."""
    futures = [pool.submit(call_task, function, task) for task in tasks]
    try:
        for future in futures:
            result, error = future.result()
            if error is not None:
                raise error
            yield result
    except BrokenProcessPool as problem:
        raise RunError(
            "A process of `genrec prepare` was killed, perhaps because memory ran out; run the command again (it goes "
            "on where it was), with fewer cores (`taskset`) or a larger data.num_shards when it happens again. A "
            'script that prepares data needs `if __name__ == "__main__":` around what it does.'
        ) from problem
    finally:
        for future in futures:
            future.cancel()


def _begin() -> None:
    """Makes a new process leave Ctrl-C to its parent, keep to its core, and end at once when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import pyarrow as pa

    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
