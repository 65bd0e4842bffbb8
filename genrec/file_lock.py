"""One process of a machine at a time: what is made for all of them is made once."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.errors import RunError

_POLL_S = 0.2
_TIMEOUT_S = 1_800.0


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock of a file; it ends with the process that holds it.

    Raises RunError when another process has been `doing` ("converting a checkpoint") for more than half an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _TIMEOUT_S
    with path.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"Another process of this machine has been {doing} for more than {_TIMEOUT_S / 60:.0f} minutes "
                        f"({path}); end it and start again."
                    ) from None
                time.sleep(_POLL_S)
        yield
