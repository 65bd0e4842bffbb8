"""Places: a folder of this machine, or a URI (s3://, gs://, ...) that pyarrow opens; and what fails on the way there.

Credentials come from the environment of each machine, never from the URI (config_secrets.py).
"""

import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from genrec.config_secrets import secrets_in
from genrec.errors import ConfigError, DataError, StorageError, full_disk

T = TypeVar("T")

COPIES_VARIABLE = "GENREC_COPIES"
"""Environment variable: the folder for this machine's copies of what is on storage."""

ATTEMPTS = 4
_PAUSE_S = 0.1

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+(.+)$")


def uri_of(place: str | Path) -> str | None:
    """The URI that a place is, None for a path of this machine; a `Path` has lost a slash, which is put back.

    Raises ConfigError, without showing the URI, when it holds credentials.
    """
    match = _URI.match(str(place))
    if match is None:
        return None
    secrets = secrets_in(str(place))
    if secrets:
        raise ConfigError(
            f"A place on storage must not hold credentials ({', '.join(secrets)}), because they would be logged; give "
            "them to the machine (an instance role, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...)."
        )
    slashes = "///" if match[1] == "file" else "//"
    return f"{match[1]}:{slashes}{match[2].rstrip('/')}"


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI, and the path on it; raises StorageError when it cannot be opened."""
    filesystem, path = asking(f"storage {shown(uri)}", "opened", lambda: fs.FileSystem.from_uri(uri))
    return filesystem, path.rstrip("/")


def asking(what: str, done: str, ask: Callable[[], T], *, attempts: int = ATTEMPTS, whence: str = "") -> T:
    """What the storage answers; `ask` is called anew when it fails in a way that may pass, so it begins at its start.

    pyarrow's client of S3 tries again by itself for six seconds, but not when an answer breaks off. FileNotFoundError
    is an answer; other errors become a StorageError, "The WHAT could not be DONE", a full disk the sentence for one.
    """
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            full = full_disk(error) if isinstance(error, OSError) else None
            if full is not None:
                raise full from error
            if attempt < attempts and not isinstance(error, PermissionError | pa.ArrowInvalid):
                time.sleep(_PAUSE_S * 2**attempt)
                continue
            raise StorageError(
                f"The {what} could not be {done} ({' '.join(str(error).split())}); check that it is "
                f"reachable from every machine, and the credentials there, then run the same command to go on{whence}."
            ) from error
    raise AssertionError("attempts must be positive")


def shown(uri: str) -> str:
    """A URI without its options."""
    return uri.partition("?")[0]


def below(uri: str, name: str) -> str:
    """The URI of what is called `name` in a folder at a URI."""
    place, question, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{question}{options}"


def copy_folder(uri: str) -> Path:
    """The folder of this machine for its copy of what is at a URI. The same for all processes; nothing is touched."""
    base = os.environ.get(COPIES_VARIABLE) or Path(tempfile.gettempdir()) / f"genrec-copies-{os.getuid()}"
    name = shown(uri).rstrip("/").rpartition("/")[2]
    return Path(base).absolute() / hashlib.sha256(uri.encode()).hexdigest()[:16] / name


def stays_inside(name: str) -> bool:
    """Whether a file's path, as a list from elsewhere has it, leads to a place in the folder of the list."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def own_folder(folder: Path) -> None:
    """Makes a folder that only this user may enter; raises DataError when there is one that others may write.

    The folder for temporary files is everybody's: what somebody else has put under our name there must not be read.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataError(
            f"{folder} belongs to another user, or others may write in it, so what is in there cannot be trusted; "
            f"remove it, or set {COPIES_VARIABLE} or TMPDIR to a folder of your own."
        )
