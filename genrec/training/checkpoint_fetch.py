"""A checkpoint as files on this machine: in place where the store is a folder, else downloaded and compared.

`fetch` is for the workers of a run: the first process of a machine downloads, the others wait for it, and all of them
read the same copy. `fetched` is for a single process that goes its own way.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from genrec.errors import RunError
from genrec.file_lock import locked
from genrec.storage import own_folder
from genrec.training.checkpoint import WRONG_DIGEST, by_digest, by_size, list_name, listed_files, read_info
from genrec.training.checkpoint_store import CheckpointStore

_DONE = "fetched"
_NUM_THREADS = 8
"""Files that are downloaded side by side: one connection seldom fills the line."""


class UnusableCheckpointError(RunError):
    """A checkpoint does not count; `problem` says why."""

    def __init__(self, store: CheckpointStore, name: str, problem: str) -> None:
        super().__init__(f"Checkpoint {store}/{name} cannot be used: {problem}; choose another.")
        self.problem = problem


def fetch(store: CheckpointStore, name: str) -> Path:
    """A local folder with the files of a checkpoint, which `forget` takes back once all workers have loaded.

    A store in a folder gives the folder itself, with sizes compared. Any other is downloaded once on each machine, with
    digests compared. Raises UnusableCheckpointError when it does not count.
    """
    problem = by_size(store, name)
    if problem is not None:
        raise UnusableCheckpointError(store, name, problem)
    if store.local_folder is not None:
        return store.local_folder / name
    lists = json.dumps(listed_files(store, name), sort_keys=True)
    copies = _copies(store)
    target = copies / f"{name}-{hashlib.sha256(lists.encode()).hexdigest()[:12]}"
    with locked(copies.with_suffix(".lock"), "downloading a checkpoint"):
        own_folder(copies)
        if not (target / _DONE).is_file():
            shutil.rmtree(copies, ignore_errors=True)  # what a killed process left
            own_folder(copies)
            download(store, name, target)
            (target / _DONE).touch()
    return target


def by_fetching(store: CheckpointStore, name: str) -> str | None:
    """A `Check` that reads a checkpoint through, and leaves what it has downloaded for `fetch`."""
    if store.local_folder is not None:
        return by_digest(store, name)
    try:
        fetch(store, name)
    except UnusableCheckpointError as error:
        return error.problem
    return None


def forget(store: CheckpointStore) -> None:
    """Deletes what `fetch` has downloaded; every worker of the machine may call it once all have loaded."""
    if store.local_folder is None:
        shutil.rmtree(_copies(store), ignore_errors=True)


@contextmanager
def fetched(store: CheckpointStore, name: str) -> Iterator[Path]:
    """A local folder with the files of a checkpoint, their digests compared, for as long as it lasts.

    Raises UnusableCheckpointError when it does not count.
    """
    if store.local_folder is not None:
        problem = by_digest(store, name)
        if problem is not None:
            raise UnusableCheckpointError(store, name, problem)
        yield store.local_folder / name
        return
    with tempfile.TemporaryDirectory(prefix="genrec-fetched-") as folder:
        download(store, name, Path(folder) / name)
        yield Path(folder) / name


def download(store: CheckpointStore, name: str, folder: Path) -> None:
    """Copies what the workers' lists name into a new local folder and compares size and digest on the way.

    Raises UnusableCheckpointError when the checkpoint does not count, and leaves no folder then.
    """
    problem = by_size(store, name)
    if problem is not None:
        raise UnusableCheckpointError(store, name, problem)
    listed = listed_files(store, name)
    folder.mkdir(parents=True)
    try:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            found = threads.map(lambda file: store.describe(name, file, copy=folder / file), listed)
            for (file, expected), actual in zip(listed.items(), found, strict=True):
                if actual != expected:
                    raise UnusableCheckpointError(store, name, WRONG_DIGEST.format(file))
        for rank in range(read_info(store, name).workers):
            (folder / list_name(rank)).write_bytes(store.read(name, list_name(rank)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copies(store: CheckpointStore) -> Path:
    """The folder of this machine that copies of a store's checkpoints go to."""
    key = hashlib.sha256(str(store).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"genrec-fetched-{os.getuid()}-{key}"
