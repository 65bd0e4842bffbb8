"""Prepared sets on storage: every machine reads a copy of its own, compared digest by digest when it is made."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.config import DataConfig
from genrec.storage import uri_of
from genrec.stored_folder import StoredFolder


def at_hand(prepared: str | Path) -> Path:
    """The folder in which this machine reads a prepared set: the set's own, or the copy of what is at a URI.

    A process looks at the storage once, and downloads what the machine does not have yet. Raises StorageError when it
    does not answer; where it has no such set, the folder has no manifest.
    """
    uri = uri_of(prepared)
    return Path(prepared) if uri is None else _fetched(uri)


def whole_place(prepared: str | Path) -> str:
    """What a process in another folder, perhaps on another machine, needs to read a prepared set."""
    return uri_of(prepared) or str(Path(prepared).absolute())


@functools.cache
def _fetched(uri: str) -> Path:
    stored = StoredFolder(uri)
    with stored.worked_in():
        _pull(stored)
    return stored.copy


def _pull(stored: StoredFolder) -> None:
    """Makes the copy what is stored, and deletes what a killed append has made here and never stored."""
    if stored.pull():
        stored.drop_unstored()


@contextmanager
def worked_on(config: DataConfig) -> Iterator[DataConfig]:
    """The config with a folder of this machine as `prepared`; what is changed there is stored at the end."""
    uri = uri_of(config.prepared)
    if uri is None:
        yield config
        return
    stored = StoredFolder(uri)
    with stored.worked_in():
        _pull(stored)
        yield config.model_copy(update={"prepared": str(stored.copy)})
        stored.push()
    _fetched.cache_clear()
