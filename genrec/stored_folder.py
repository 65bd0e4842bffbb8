"""A folder on storage, and this machine's copy of it: prepared sets and run directories at s3://, gs://, ...

    URI/index.json               {"files": {"metrics.jsonl": {"num_bytes": 812, "sha256": "3f9a..."}, ...}}
    URI/files/metrics.jsonl/3f9a...    what is in a file, by its digest

A push uploads what has changed under names that nobody reads yet, and then replaces the index, which is one object: a
reader sees the folder as it was, or as it is, and never a half of each. A pull compares every digest. One process
pushes a folder at a time; who pulls it in the meantime may have to begin again when what it reads is replaced.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from genrec.errors import DataError, StorageError
from genrec.file_lock import locked
from genrec.storage import COPIES_VARIABLE, asking, copy_folder, open_storage, own_folder, shown, stays_inside
from genrec.whole_file import write_atomically

INDEX_FILE = "index.json"
FILES_DIR = "files"
_KNOWN_FILE = "known.json"
_NUM_THREADS = 8
_DRAFT = ".tmp"
_PASSING = (_DRAFT, ".new", ".old")
_SIZE, _INODE = 1, 2
_CHUNK_BYTES = 8 * 2**20
_ATTEMPTS = 5

T = TypeVar("T")

Files = dict[str, dict[str, Any]]
"""Path in the folder -> num_bytes and sha256."""

_Seen = list[Any]
"""Stamp of a file, and its digest then."""


class _ChangedError(Exception):
    """A file was replaced while it was uploaded."""


class StoredFolder:
    """The folder at `uri`. Making the object touches nothing. Methods raise StorageError when the storage fails."""

    def __init__(self, uri: str, *, leave_out: Iterable[str] = (), changes: bool = False) -> None:
        """`leave_out` names entries of the copy that are not stored.

        `changes` says that the copy is worked in: a file that has changed since the last push or pull is then newer
        than what is stored, and a pull leaves it. Else it is damaged, and replaced.
        """
        self.uri = uri
        self._changes = changes
        self.copy = copy_folder(uri)
        self._leave_out = frozenset(leave_out)

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return open_storage(self.uri)

    def index(self) -> Files | None:
        """The files that are stored, None where there is no such folder."""
        filesystem, root = self._opened

        def read() -> bytes:
            with filesystem.open_input_stream(posixpath.join(root, INDEX_FILE)) as stream:
                content: bytes = stream.read()
            return content

        try:
            files: Files = json.loads(self._ask("read", read))["files"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{shown(self.uri)}/{INDEX_FILE} is damaged; restore it, or choose another place."
            ) from error
        if not all(re.fullmatch("[0-9a-f]{64}", str(told.get("sha256"))) for told in files.values()):
            raise DataError(f"{shown(self.uri)}/{INDEX_FILE} is damaged; restore it, or choose another place.")
        wrong = [name for name in files if not stays_inside(name)]
        if wrong:
            raise DataError(f"{shown(self.uri)}/{INDEX_FILE} names {wrong[0]!r}, outside of its folder; do not use it.")
        return files

    def pull(self) -> bool:
        """Makes the copy what is stored, file by file, digests compared; False where there is no such folder.

        Files of the copy that were never stored stay.
        """
        with self._alone():
            for attempt in range(1, _ATTEMPTS + 1):
                files = self.index()
                if files is None:
                    return False
                try:
                    self._download(files)
                    return True
                except FileNotFoundError as error:  # replaced since the index was read
                    if attempt == _ATTEMPTS:
                        raise StorageError(
                            f"{shown(self.uri)} lacks a file that its index names ({error}): it is replaced faster "
                            "than it can be read, or damaged; try again, or restore it."
                        ) from error
        return False

    def worked_in(self) -> contextlib.AbstractContextManager[None]:
        """One process of this machine at a time; raises RunError when another one takes more than half an hour."""
        self._own()
        return locked(self.copy.parent / "work", f"working on {shown(self.uri)}")

    def drop_unstored(self) -> None:
        """Deletes files of the copy that were not there at the last push or pull."""
        with self._alone():
            base = self._base()
            for path in list(self.copy.rglob("*")):
                name = path.relative_to(self.copy)
                is_left_out = name.parts[0] in self._leave_out
                if not is_left_out and name.as_posix() not in base and (path.is_file() or path.is_symlink()):
                    path.unlink()

    def push(self) -> None:
        """Makes what is stored the copy: uploads what has changed, replaces the index, deletes what it left.

        Files may grow or be replaced meanwhile; what is stored is each as it was at one moment.
        """
        with self._alone():
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._push()
                    break
                except _ChangedError as error:
                    if attempt == _ATTEMPTS:
                        raise StorageError(
                            f"{error} changes faster than it can be copied to {shown(self.uri)}; run the command again."
                        ) from error

    def _push(self) -> None:
        mine, base, stored = self._describe(), self._base(), self.index()
        if stored is None:
            stored, base = {}, {}
        files = _merged(mine, base, stored, keep_deleted=self._changes)
        if files != stored:
            new = [(name, told["sha256"]) for name, told in files.items() if stored.get(name) != told]
            self._each(lambda name, digest: self._upload(name, digest, files[name]["num_bytes"]), new)
            content = json.dumps({"files": files}, indent=1).encode()
            self._write(posixpath.join(self._opened[1], INDEX_FILE), lambda stream: stream.write(content))
            self._each(self._delete, [(n, told["sha256"]) for n, told in stored.items() if files.get(n) != told])
        same = {name: told for name, told in files.items() if mine.get(name) == told}
        self._remember(base={name: told for name, told in base.items() if name in files} | same)

    def _delete(self, name: str, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask("deleted from", lambda: self._opened[0].delete_file(self._object(name, digest)))

    def delete(self) -> None:
        """Deletes the folder and the copy, the index first."""
        filesystem, root = self._opened

        def forget() -> None:
            for path, delete in ((INDEX_FILE, filesystem.delete_file), (FILES_DIR, filesystem.delete_dir)):
                with contextlib.suppress(FileNotFoundError):
                    delete(posixpath.join(root, path))

        with self._alone():
            self._ask("deleted from", forget)
            shutil.rmtree(self.copy, ignore_errors=True)
            self._known_path.unlink(missing_ok=True)

    def _ask(self, done: str, ask: Callable[[], T]) -> T:
        return asking(f"storage {shown(self.uri)}", done, ask)

    @property
    def _known_path(self) -> Path:
        return self.copy.parent / _KNOWN_FILE

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        self._own()
        return locked(self.copy.parent / "lock", f"copying {shown(self.uri)}")

    def _own(self) -> None:
        if COPIES_VARIABLE not in os.environ:
            own_folder(self.copy.parent.parent)
        own_folder(self.copy.parent)

    def _object(self, name: str, digest: str) -> str:
        return posixpath.join(self._opened[1], FILES_DIR, name, digest)

    def _describe(self) -> Files:
        """The files of the copy; a digest is computed anew where time, size or inode of the file has changed.

        Raises _ChangedError when a file was replaced meanwhile, because files are replaced together (an export).
        """
        known = self._known()["digests"]
        found: dict[str, _Seen] = {}
        for path in sorted(self.copy.rglob("*")):
            name = path.relative_to(self.copy).as_posix()
            parts = name.split("/")
            if parts[0] in self._leave_out or any(part.endswith(_PASSING) for part in parts):
                continue
            with contextlib.suppress(FileNotFoundError):  # gone again
                if path.is_symlink() or not path.is_file():
                    continue
                stamp, seen = _stamp(path), known.get(name)
                is_known = seen is not None and seen[0] == stamp
                found[name] = seen if is_known and seen else [stamp, _digest(path, stamp[_SIZE])]
        for name, (stamp, _) in found.items():
            path = self.copy / name
            if not path.is_file() or _stamp(path)[_INODE] != stamp[_INODE]:
                raise _ChangedError(name)
        self._remember(digests=found)
        return {name: {"num_bytes": stamp[_SIZE], "sha256": digest} for name, (stamp, digest) in found.items()}

    def _download(self, files: Files) -> None:
        base, digests = self._base(), self._known()["digests"]

        def is_here(name: str) -> bool:
            path, told = self.copy / name, files[name]
            if not path.is_file():
                return False
            if self._changes and base.get(name) == told:
                return True
            return bool(digests.get(name) == [_stamp(path), told["sha256"]])

        self.copy.mkdir(parents=True, exist_ok=True)
        missing = [(name, told["sha256"]) for name, told in files.items() if not is_here(name)]
        self._each(self._download_file, missing)
        if not self._changes:
            for name in base.keys() - files.keys():
                (self.copy / name).unlink(missing_ok=True)
        fresh = {name: [_stamp(self.copy / name), digest] for name, digest in missing}
        self._remember(base=files, digests=digests | fresh)

    def _download_file(self, name: str, digest: str) -> None:
        target = self.copy / name
        draft = target.with_name(target.name + _DRAFT)

        def fetch() -> str:
            target.parent.mkdir(parents=True, exist_ok=True)
            found = hashlib.sha256()
            path = self._object(name, digest)
            with self._opened[0].open_input_stream(path, compression=None) as stream, draft.open("wb") as file:
                while chunk := stream.read(_CHUNK_BYTES):
                    found.update(chunk)
                    file.write(chunk)
            return found.hexdigest()

        if self._ask("read", fetch) != digest:
            draft.unlink()
            raise DataError(f"{shown(self.uri)}: {name} is damaged (its SHA-256 is another); restore it from a copy.")
        draft.replace(target)

    def _upload(self, name: str, digest: str, num_bytes: int) -> None:
        """Stores the first `num_bytes` of a file; raises _ChangedError when they are not those of the digest."""

        def copy(stream: pa.NativeFile) -> None:
            found, left = hashlib.sha256(), num_bytes
            try:
                with (self.copy / name).open("rb") as file:
                    while chunk := file.read(min(_CHUNK_BYTES, left)):
                        found.update(chunk)
                        stream.write(chunk)
                        left -= len(chunk)
            except FileNotFoundError as error:
                raise _ChangedError(name) from error
            if found.hexdigest() != digest:
                raise _ChangedError(name)

        self._write(self._object(name, digest), copy)

    def _write(self, path: str, fill: Callable[[pa.NativeFile], None]) -> None:
        filesystem = self._opened[0]

        def write() -> None:
            filesystem.create_dir(posixpath.dirname(path), recursive=True)
            with filesystem.open_output_stream(path, compression=None) as stream:
                fill(stream)

        try:
            self._ask("written", write)
        except FileNotFoundError as error:  # S3's answer for a bucket that is not there
            raise StorageError(f"{shown(self.uri)} cannot be written ({error}); is there such a bucket?") from error

    @staticmethod
    def _each(work: Callable[[str, str], None], jobs: list[tuple[str, str]]) -> None:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            for _ in threads.map(lambda job: work(*job), jobs):
                pass

    def _base(self) -> Files:
        """What the copy was at the last push or pull; nothing where the copy is gone."""
        base: Files = self._known()["base"] if self.copy.is_dir() else {}
        return base

    def _known(self) -> dict[str, Any]:
        """What this machine remembers: `base`, and of each file the stamp and the `digests` that belongs to it."""
        nothing: dict[str, Any] = {"base": {}, "digests": {}}
        try:
            known: dict[str, Any] = json.loads(self._known_path.read_text(encoding="utf-8"))
            return nothing | known
        except (OSError, ValueError):
            return nothing

    def _remember(self, **news: Any) -> None:
        write_atomically(self._known_path, json.dumps(self._known() | news))


def _merged(mine: Files, base: Files, stored: Files, *, keep_deleted: bool) -> Files:
    """What is to be stored: what has changed here since `base`, and of everything else what is stored now."""
    merged: Files = {}
    for name in sorted({*mine, *base, *stored}):
        deleted = name not in mine and name in base
        changed = mine.get(name) != base.get(name) and not (deleted and keep_deleted)
        told = mine.get(name) if changed else stored.get(name)
        if told is not None:
            merged[name] = told
    return merged


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def _digest(path: Path, num_bytes: int) -> str:
    """Of the first `num_bytes`: a log grows while it is read."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(min(_CHUNK_BYTES, num_bytes)):
            found.update(chunk)
            num_bytes -= len(chunk)
    return found.hexdigest()
