"""One process of a machine at a time: what is made for all of them is made once."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from genrec.errors import RunError

_POLL_S = 0.2
_TIMEOUT_S = 1_800.0


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock of a file, which is there only while a process holds it or was killed with it.

    Raises RunError when another process has been `doing` ("converting a checkpoint") for more than half an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        with path.open("w") as handle:
            if _is_mine(handle, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)  # whoever waits for this file finds that it is not `path` any more
                return
        if time.monotonic() > deadline:
            raise RunError(
                f"Another process of this machine has been {doing} for more than {_TIMEOUT_S / 60:.0f} minutes "
                f"({path}); end it and start again."
            )
        time.sleep(_POLL_S)


def _is_mine(handle: IO[str], path: Path) -> bool:
    """Takes the lock of an open file; False when another has it, or the one that had it has removed the file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
