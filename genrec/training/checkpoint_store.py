"""Where the checkpoints of a run are: in a folder, or on any storage that pyarrow speaks to (s3://, gs://, ...).

    STORE/step_00001000/...        the files of a checkpoint, see checkpoint.py

A store lists, sizes, reads, writes and deletes; what a checkpoint is, it does not know. Nothing here needs folders,
renames or times, because object stores have none: whether a checkpoint counts follows from names and sizes alone. A
folder given as a path is used in place. Whatever has a URI is read by downloading it (checkpoint_fetch.py), file://
too. Credentials come from the environment of each machine, never from the URI.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from genrec.config import ExperimentConfig
from genrec.errors import StorageError
from genrec.run_dir import RunDir
from genrec.storage import ATTEMPTS, asking

T = TypeVar("T")

_NAME = re.compile(r"^step_(\d{8,})$")
_CHUNK_BYTES = 8 * 2**20
_COPY_CHUNK_BYTES = 64 * 2**20


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint before step `step`."""
    return f"step_{step:08d}"


class CheckpointStore:
    """A folder of checkpoints. Making the object touches nothing; the storage is opened by the first call.

    Every method raises StorageError when the storage fails, and FileNotFoundError when it answers that a file is not
    there: only the second says anything about a checkpoint.
    """

    def __init__(self, location: str | Path, subfolder: str = "", *, filesystem: fs.FileSystem | None = None) -> None:
        self._location = str(location)
        self._subfolder = subfolder
        self._filesystem = filesystem
        is_path = filesystem is None and "://" not in self._location
        self.local_folder: Path | None = Path(self._location, subfolder) if is_path else None
        """The folder itself, where checkpoints can be read in place."""

    def __str__(self) -> str:
        return posixpath.join(urlsplit(self._location)._replace(query="").geturl(), self._subfolder).rstrip("/")

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        if self._filesystem is not None:
            return self._filesystem, posixpath.join(self._location, self._subfolder).rstrip("/")
        if self.local_folder is not None:
            return fs.LocalFileSystem(), str(self.local_folder.absolute())
        filesystem, root = self._ask("opened", lambda: fs.FileSystem.from_uri(self._location))
        return filesystem, posixpath.join(root, self._subfolder).rstrip("/")

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow filesystem."""
        return self._opened[0]

    @property
    def root(self) -> str:
        """Path of the store on its filesystem."""
        return self._opened[1]

    def path(self, name: str, file: str = "") -> str:
        """Path of a checkpoint, or of a file in it, on the filesystem."""
        return posixpath.join(self.root, name, file).rstrip("/")

    def names(self) -> list[str]:
        """Names of the checkpoints, oldest first, whether they count or not."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        infos = self._ask("listed", lambda: self.filesystem.get_file_info(selector))
        found = [
            (int(match[1]), match[0]) for info in infos if not info.is_file and (match := _NAME.match(info.base_name))
        ]
        return [name for _, name in sorted(found)]

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file of a checkpoint; empty when there is none."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True, recursive=True)
        infos = self._ask("listed", lambda: self.filesystem.get_file_info(selector))
        return {posixpath.relpath(info.path, self.path(name)): info.size for info in infos if info.is_file}

    def read(self, name: str, file: str) -> bytes:
        """The content of a small file."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self.path(name, file), compression=None) as stream:
                content: bytes = stream.read()
            return content

        return self._ask("read", read)

    def describe(self, name: str, file: str, copy: Path | None = None) -> dict[str, Any]:
        """`describe_stream` of a file, which is read through once; `copy` is written on the way."""

        def describe() -> dict[str, Any]:
            with self.filesystem.open_input_stream(self.path(name, file), compression=None) as stream:
                if copy is None:
                    return describe_stream(stream)
                copy.parent.mkdir(parents=True, exist_ok=True)
                with copy.open("wb") as target:
                    return describe_stream(stream, target)

        return self._ask("read", describe)

    def write(self, name: str, file: str, content: bytes) -> None:
        """Writes a small file."""

        def write() -> None:
            self.filesystem.create_dir(self.path(name), recursive=True)
            with self.filesystem.open_output_stream(self.path(name, file), compression=None) as stream:
                stream.write(content)

        self._ask("written", write)

    def upload(self, folder: Path, name: str) -> None:
        """Copies the files of a local folder into a checkpoint, in any order."""

        def copy() -> None:
            self.filesystem.create_dir(self.path(name), recursive=True)
            fs.copy_files(
                str(folder),
                self.path(name),
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
                chunk_size=_COPY_CHUNK_BYTES,
                use_threads=False,  # uploads to S3 with threads can deadlock: apache/arrow#32372
            )

        try:
            self._ask("written", copy)
        except FileNotFoundError as error:
            raise StorageError(f"{folder} went away while it was uploaded to {self} ({error}); start again.") from error

    def delete(self, name: str, first: str) -> None:
        """Deletes a checkpoint, the file `first` before all others; what is not there is no error."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                if self.filesystem.get_file_info(self.path(name, first)).is_file:
                    self.filesystem.delete_file(self.path(name, first))
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.path(name))

        self._ask("deleted from", delete)

    def delete_file(self, file: str) -> None:
        """Deletes a file beside the checkpoints; one that is not there is no error."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                if self.filesystem.get_file_info(self.path(file)).is_file:
                    self.filesystem.delete_file(self.path(file))

        self._ask("deleted from", delete)

    def check_writable(self) -> None:
        """Writes a small file and deletes it, so that a run does not find out at its first checkpoint."""
        self.write("", "writable", b"")
        self.delete_file("writable")

    def _ask(self, done: str, ask: Callable[[], T]) -> T:
        at_uri = self._filesystem is None and self.local_folder is None
        whence = " from the last checkpoint"
        return asking(f"checkpoint storage {self}", done, ask, attempts=ATTEMPTS if at_uri else 1, whence=whence)


def store_of(config: ExperimentConfig, run: RunDir) -> CheckpointStore:
    """Where a run keeps its checkpoints: in its own directory, or in its own folder of `train.checkpoint_dir`."""
    return store_in(config.train.checkpoint_dir, run)


def store_in(checkpoint_dir: str | None, run: RunDir) -> CheckpointStore:
    """`store_of` for a process that knows no more of the config than this."""
    if checkpoint_dir is None:
        return CheckpointStore(run.checkpoints_path) if run.uri is None else CheckpointStore(run.uri, "checkpoints")
    return CheckpointStore(checkpoint_dir, run.root.name)


def describe_stream(stream: IO[bytes], target: IO[bytes] | None = None) -> dict[str, Any]:
    """Size and SHA-256 of what a stream holds, copied to `target` on the way."""
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
    return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}
