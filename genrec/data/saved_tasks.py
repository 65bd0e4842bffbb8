"""Tasks whose results outlive the process: what a killed preparation had finished is not done again."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genrec.data.local_tasks import RunTasks

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


def map_saved(
    run: RunTasks, function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], folder: Path
) -> Iterator[ResultT]:
    """`function(task)` for every task, in the order of the tasks; those with a file in `folder` are not called again.

    A task's file is its pickled result, and appears whole when the task is done; `run` itself carries nothing back.
    """
    folder.mkdir(exist_ok=True)
    paths = [_result_path(folder, index) for index in range(len(tasks))]
    missing = {path: task for path, task in zip(paths, tasks, strict=True) if not path.exists()}
    done: Iterator[None] = iter(())
    if missing:
        done = run(_Saved(function), list(missing.items()))
    with contextlib.ExitStack() as stack:
        if close := getattr(done, "close", None):
            stack.callback(close)  # ends the tasks that still run when nobody wants them any more
        for path in paths:
            if path in missing:
                next(done)
            yield pickle.loads(path.read_bytes())
        for _ in done:  # there is none, but only now does `run` know that nobody waits
            pass


def num_saved(folder: Path) -> int:
    """How many tasks have a file in `folder`."""
    return sum(1 for _ in folder.glob("*.pickle"))


def _result_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.pickle"


class _Saved:
    """Calls the function, and writes what comes out to the task's file in one rename."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "task")

    def __call__(self, job: tuple[Path, Any]) -> None:
        path, task = job
        draft = path.with_suffix(".draft")
        draft.write_bytes(pickle.dumps(self.function(task)))
        draft.replace(path)
