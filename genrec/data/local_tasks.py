"""Where the tasks of `genrec prepare` run: on the Ray cluster there is, else in processes of this machine.

Ray takes several seconds and some hundred megabytes, which is more than most logs need. Without a cluster it would give
nothing for that, and a log can be prepared where Ray is not installed.
"""

import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from genrec.data.ray_session import ensure_ray, has_ray, map_tasks
from genrec.errors import RunError

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Calls a function for every task, somewhere, and hands out what it returns in the order of the tasks."""

TASK_BYTES = 2**30  # memory that a task may need: a run or a shard of 2 million events takes less than half of it
_END_TIMEOUT_S = 30


@contextmanager
def open_tasks() -> Iterator[RunTasks]:
    """What runs tasks, until the end of the block: on Ray where RAY_ADDRESS names a cluster or Ray is up already."""
    if has_ray():
        ensure_ray()
        yield map_tasks
        return
    processes = _Processes(num_processes())
    try:
        yield processes.map
    finally:
        processes.end()


def num_processes() -> int:
    """One for each core, as long as all of them together need at most half of the memory."""
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), total_bytes // 2 // TASK_BYTES))


class _Processes:
    """At most `limit` processes of `task_process.py`, started when there is work for them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        """`function(task)` for every task, in order. The first GenrecError of a task is raised here, without a trace.

        Raises RunError when a process ends by itself.
        """
        while len(self._all) < min(self._limit, len(tasks)):
            self._start()
        with ThreadPoolExecutor(self._limit) as threads:
            answers = [threads.submit(self._ask, function, task) for task in tasks]
            try:
                for answer in answers:
                    yield answer.result()
            finally:
                unfinished = [answer for answer in answers if not answer.cancel() and not answer.done()]
                if unfinished:
                    self.end()  # else the threads would wait for tasks that nobody wants any more

    def end(self) -> None:
        """Ends the processes, whatever they do; a later `map` starts new ones."""
        self._idle = queue.SimpleQueue()
        while self._all:
            process = self._all.pop()
            process.kill()
            process.wait(_END_TIMEOUT_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was still to be written is lost, as it should be
                        pipe.close()

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "genrec.data.task_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a core each, for Arrow, too
            start_new_session=True,  # Ctrl-C is for the parent, and they end with it
        )
        self._all.append(process)
        self._idle.put(process)

    def _ask(self, function: Callable[[Any], Any], task: Any) -> Any:
        idle = self._idle
        process = idle.get()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(pickle.dumps((function, task)), process.stdin)
            process.stdin.flush()
            result, error, trace = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError, ValueError) as problem:
            raise RunError(
                "A process of `genrec prepare` was killed, perhaps because memory ran out; run the command again (it "
                "goes on where it was), with fewer cores (`taskset`) or a larger data.num_shards when it happens again."
            ) from problem
        finally:
            idle.put(process)  # one that has ended, too: who waits for one must not wait for ever
        if error is not None:
            raise error
        if trace:
            raise RuntimeError(f"A task failed:\n{trace}")
        return result
