"""The folder of a prepared data set as a whole: it appears at once, or not at all.

Everything is written to `.NAME.preparing` beside the target and moved in one rename. Only one process at a time holds
that folder (a lock that dies with the process). What a killed one left there is used by the next one that does the same
work, and deleted by any other.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.data.schema import (
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    PART_COUNTS_FILE,
    REJECTED_DIR,
    SEQUENCES_DIR,
    USERS_FILE,
)
from genrec.errors import DataError

_OURS = {ITEMS_FILE, ITEM_VECTORS_FILE, PART_COUNTS_FILE, USERS_FILE, SEQUENCES_DIR, REJECTED_DIR, MANIFEST_FILE}
_REPLACED = "replaced"  # in the work folder: the set that was there before


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises DataError when the set exists already, or the folder holds anything that genrec did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError(f"{target} is a file; set data.prepared to a folder.")
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in _OURS)
    if foreign:
        raise DataError(
            f"{target} holds other files ({', '.join(foreign[:3])}), which a prepared data set would replace; "
            "set data.prepared to a folder of its own."
        )
    if (target / MANIFEST_FILE).exists() and not overwrite:
        raise DataError(f"{target} is prepared already; run `genrec prepare CONFIG --overwrite` to make it again.")


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target`, locked against other processes and deleted at the end.

    It stays when the work was interrupted, so that it can go on; after a DataError it would fail again, and is deleted.
    Raises DataError when it cannot be written, or another process is preparing the same set.
    """
    work = _work_path(target)
    try:
        handle = _lock(work, target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error}); set data.prepared to another folder.") from error
    try:
        yield work
    except DataError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(handle)


def keep_only(work: Path, *patterns: str) -> None:
    """Deletes what other work has left in the folder: all entries but those that fit one of the patterns."""
    for leftover in work.iterdir():
        if any(leftover.match(pattern) for pattern in patterns):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def publish(work: Path, finished: Path, target: Path) -> None:
    """Moves the `finished` folder, inside `work`, to `target`; what was there goes away with `work`."""
    if target.exists():
        target.rename(work / _REPLACED)
    finished.rename(target)


def restore(target: Path) -> None:
    """Puts back the set that a process had moved aside when it was killed inside `publish`.

    Raises DataError when another process is inside it now.
    """
    if not target.exists() and (_work_path(target) / _REPLACED / MANIFEST_FILE).exists():
        with work_folder(target):
            pass


def _work_path(target: Path) -> Path:
    return target.parent / f".{target.name}.preparing"


def _lock(work: Path, target: Path) -> int:
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not work.exists() or os.fstat(handle).st_ino != work.stat().st_ino:
            raise BlockingIOError  # the process that had it finished just now
    except BlockingIOError as error:
        os.close(handle)
        raise DataError(f"Another process is preparing {target}; wait until it is done, or end it.") from error
    if not target.exists() and (work / _REPLACED / MANIFEST_FILE).exists():
        (work / _REPLACED).rename(target)  # it was killed between the two renames of `publish`
    return handle
