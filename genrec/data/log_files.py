"""Files of a log on any file system that pyarrow reads: finding, naming and opening them."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from genrec.errors import DataError


class FileError(DataError):
    """One file of the log cannot be used; the others may. `reason` is the short word that such files are counted by."""

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file. `root` is the URI whose file system holds `path` (None: the local one), `name` its path in the log."""

    path: str
    num_bytes: int
    root: str | None = None
    name: str = ""

    @property
    def is_gzip(self) -> bool:
        """Whether the name says that the file is compressed with gzip."""
        return self.path.endswith(".gz")

    def open(self) -> pa.NativeFile:
        """The file for random access; raises DataError when it cannot be opened."""
        try:
            return _filesystem(self.root).open_input_file(self.path)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def open_text(self) -> pa.NativeFile:
        """The file as a stream of plain bytes: `.gz` is decompressed on the way."""
        try:
            return _filesystem(self.root).open_input_stream(self.path, compression="gzip" if self.is_gzip else None)
        except OSError as error:
            raise unreadable(self.path, error) from error


def unreadable(path: str, error: Exception) -> FileError:
    """The error for a file that is damaged, truncated or closed to us."""
    reason = " ".join(str(error).split()).rstrip(".")
    return FileError(f"{path} cannot be read ({reason}); is it complete? Copy it again or take it out of the log.")


def expand_path(path: str) -> str:
    """`path` with $VARIABLES and ~ replaced, absolute because tasks may run in another folder; a URI stays one.

    Raises DataError when a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise DataError(
            f"{path} uses ${missing[1]}, which is not set; run `export {missing[1]}=FOLDER` or write the path itself."
        )
    return expanded if "://" in expanded else os.path.abspath(expanded)


def find_files(path: str, suffixes: Iterable[str]) -> tuple[LogFile, ...]:
    """The file at `path`, or every file below the folder that ends in one of `suffixes`, by name.

    A file that is named directly may end as it likes. Names that start with `.` or `_` are left out.
    Raises DataError when nothing is there, or the folder holds no such file.
    """
    expanded, wanted = expand_path(path), tuple(suffixes)
    root = expanded if "://" in expanded else None
    try:
        inner = expanded if root is None else pafs.FileSystem.from_uri(expanded)[1]
        info = _filesystem(root).get_file_info(inner)
        if info.type == pafs.FileType.File:
            return (LogFile(inner, info.size or 0, root, Path(inner).name),)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{expanded} does not exist{_neighbours(expanded, root)}.")
        found = _filesystem(root).get_file_info(pafs.FileSelector(inner, recursive=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{expanded} cannot be listed: {' '.join(str(error).split())}.") from error
    files = [
        LogFile(entry.path, entry.size or 0, root, str(Path(entry.path).relative_to(inner)))
        for entry in sorted(found, key=lambda entry: str(entry.path))
        if entry.type == pafs.FileType.File
        and entry.base_name.endswith(wanted)
        and not any(part.startswith((".", "_")) for part in Path(entry.path).relative_to(inner).parts)
    ]
    if not files:
        names = sorted(entry.base_name for entry in found)[:5]
        holds = ", ".join(names) if names else "nothing"
        raise DataError(
            f"{expanded} holds no file that ends in {' or '.join(wanted)} (it holds {holds}); check the path."
        )
    return tuple(files)


def check_columns(path: str, wanted: dict[str, str], present: Iterable[str]) -> None:
    """Raises FileError when a mapped column is not in the file (with the nearest names that are), or is there twice."""
    names = list(present)
    for role, name in wanted.items():
        if names.count(name) > 1:
            raise FileError(
                f"{path} has {names.count(name)} columns {name!r} for data.source.columns.{role}; rename all but one.",
                "column twice",
            )
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"the file has {', '.join(names) or 'no columns'}."
            )
            raise FileError(f"{path} has no column {name!r} for data.source.columns.{role}; {hint}", "missing column")


def _filesystem(root: str | None) -> pafs.FileSystem:
    return pafs.LocalFileSystem() if root is None else pafs.FileSystem.from_uri(root)[0]


def _neighbours(path: str, root: str | None) -> str:
    folder = Path(path).parent
    if root is not None or not folder.is_dir():
        return ""
    close = difflib.get_close_matches(Path(path).name, sorted(os.listdir(folder)), n=3, cutoff=0.5)
    return f"; beside it: {', '.join(close)}" if close else ""
