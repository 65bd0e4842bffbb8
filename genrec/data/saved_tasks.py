"""Tasks whose results outlive the process: what a killed preparation had finished is not done again."""

import contextlib
import importlib
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genrec.data.local_tasks import RunTasks
from genrec.errors import DataError

_ARRAYS = ("numpy._core.multiarray", "numpy.core.multiarray")
_PLAIN = {
    *((module, name) for module in _ARRAYS for name in ("_reconstruct", "scalar")),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("pathlib", "PosixPath"),
    ("_codecs", "encode"),
}
"""What results hold besides the classes of genrec.data; none of it runs code that a pickle brings along."""

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
            yield _read(path)
        for _ in done:  # there is none, but only now does `run` know that nobody waits
            pass


def num_saved(folder: Path) -> int:
    """How many tasks have a file in `folder`."""
    return sum(1 for _ in folder.glob("*.pickle"))


def _result_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.pickle"


def _read(path: Path) -> Any:
    """A result; raises DataError when it holds anything that no task of genrec's returns."""
    try:
        return _Results(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise DataError(
            f"{path} is not a result of genrec's ({error}); delete {path.parents[1]} and run the command again."
        ) from error


class _Results(pickle.Unpickler):
    """Reads plain values, arrays, paths and the classes of genrec.data, and calls nothing else: a pickle that somebody
    else has put into the folder runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        """The class that a pickle names, if results may hold it."""
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module.startswith("genrec.data."):
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


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
