"""What workers tell the driver of a mistake that a restart cannot mend: one small file in the run directory.

The mistake may be a full disk, where no new file can be written. So the driver puts a file aside that already has its
block, and the sentence is written over that.
"""

import json
import logging
import os
from pathlib import Path

from genrec.errors import GenrecError, RewindError, StorageError, full_disk
from genrec.run_dir import RunDir, write_atomically

logger = logging.getLogger(__name__)

FAILURE_FILE = "failure.json"
STORAGE_FILE = "storage_failure.json"
RESERVE_FILE = "failure.json.reserve"
RESERVED_BYTES = 4_096
"""One block of most file systems; a longer sentence is cut."""


def expect_mistakes(run: RunDir) -> None:
    """Forgets what was told before, and reserves room for what may be told; the driver calls it at every start."""
    (run.root / FAILURE_FILE).unlink(missing_ok=True)
    with (run.root / RESERVE_FILE).open("wb") as file:
        file.write(b" " * RESERVED_BYTES)
        file.flush()
        os.fsync(file.fileno())


def record_mistake(path: Path, error: Exception) -> None:
    """Writes down what a restart cannot mend; after other errors, Ray starts the workers again."""
    mistake = full_disk(error) if isinstance(error, OSError) else error
    if isinstance(mistake, GenrecError) and not isinstance(mistake, RewindError | StorageError):
        record(path, mistake)


def record(path: Path, mistake: GenrecError) -> None:
    """Tells the driver, and the workers that Ray starts next, what a restart cannot mend."""
    message = str(mistake)
    try:
        write_atomically(path, json.dumps({"message": message}))
    except OSError:
        try:
            _write_into_reserve(path, message)
        except OSError:
            logger.exception("%s could not be written; Ray will restart the workers", path)


def message_of(path: Path) -> str:
    """What `record` has written, or that it cannot be read any more."""
    try:
        return str(json.loads(path.read_bytes())["message"])
    except (ValueError, KeyError, TypeError):
        return f"{path} holds why, and is damaged; log.txt beside it has more."


def _write_into_reserve(path: Path, message: str) -> None:
    """The file as `record` writes it, padded with spaces: as long as before, so that it needs no new block.

    Whoever takes the reserve renames it first, so one of several workers does; it is enough.
    """
    taken = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.with_name(RESERVE_FILE).rename(taken)
    text = json.dumps({"message": message})
    if len(text) > RESERVED_BYTES:  # json.dumps writes ASCII: a character is a byte, an escape at most twelve
        text = json.dumps({"message": message[: RESERVED_BYTES // 13]})
    with taken.open("r+b") as file:
        file.write(text.encode().ljust(RESERVED_BYTES))
        file.flush()
        os.fsync(file.fileno())
    taken.rename(path)
