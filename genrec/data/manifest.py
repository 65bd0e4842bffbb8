"""The manifest of a prepared data set: what is in it, and the hash that says it is still the same."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from genrec.config import GlobalTimeSplit, Split
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE, MANIFEST_FILE, SEQUENCES_DIR, USERS_FILE
from genrec.data.sequence_files import load_superseded, read_row_group, superseded_path
from genrec.data.stored_set import at_hand
from genrec.errors import DataError

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowGroup(_Frozen):
    """Rows (users) and events of one row group."""

    rows: int
    events: int


class SequenceFile(_Frozen):
    """One file of sequences; `path` is relative to the prepared folder."""

    path: str = Field(pattern=r"^sequences/[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    num_bytes: int
    row_groups: tuple[RowGroup, ...] = Field(description="what counts of each row group: superseded rows do not")
    sha256: str = Field("", description="of the file's bytes; empty in sets of earlier versions")
    num_superseded: int = Field(0, description="rows that an append has written anew into another file")


class SourceFile(_Frozen):
    """One file of the log; `path` is relative to the source's folder."""

    path: str
    num_bytes: int


class RejectedFile(_Frozen):
    """A file of the log that was put aside as a whole, and the sentence that says why."""

    path: str
    reason: str
    message: str


class Part(_Frozen):
    """A named stretch of the files: one of several logs that were prepared together."""

    name: str
    num_files: int
    content_hash: str = Field("", description="of the prepared set that the part was made of")


class VectorFacts(_Frozen):
    """What the set's item vectors are."""

    dim: int
    num_items: int = Field(description="items that have a vector")
    num_cold_items: int = Field(description="items of the catalogue that have no event in the log, only a vector")
    num_bytes: int
    sha256: str = Field(description="of the file's bytes")


class Manifest(_Frozen):
    """Everything that a plan, an evaluation or a report must know without reading the sequences."""

    schema_version: int = SCHEMA_VERSION
    num_users: int
    num_items: int = Field(description="without padding: item indices are 1 .. num_items")
    num_train_items: int = Field(
        0,
        description="items 1 .. num_train_items may be negatives: those known before a global-time split, and no cold "
        "ones; 0 is all",
    )
    item_vectors: VectorFacts | None = Field(None, description="null when the set has none")
    num_events: int
    num_train_events: int
    has_times: bool = Field(description="False: `times` only count positions, the log had none")
    time_range: tuple[int, int] = Field(description="first and last second of the log")
    actions: tuple[str, ...] = Field((), description="names of actions 1, 2, ...; empty when the log has none")
    has_values: bool = Field(False, description="True: the sequences have a column `values` (data.keep_values)")
    length_histogram: dict[int, int] = Field(description="upper bound of a length bucket (power of two) -> users")
    split: Split
    files: tuple[SequenceFile, ...]
    parts: tuple[Part, ...] = Field((), description="which files, in order, come from which log; () is one log")
    num_rows: int = Field(0, description="rows read: events + rejected + filtered; 0 in sets of earlier versions")
    rejected: dict[str, int] = Field(default_factory=dict, description="bad rows by reason")
    rejected_files: tuple[RejectedFile, ...] = Field((), description="files of the log that were put aside")
    filtered: dict[str, int] = Field(default_factory=dict, description="rows dropped by each filter")
    source_files: tuple[SourceFile, ...] = Field((), description="what of the log is in the set; Parquet and CSV only")
    has_subseconds: bool = Field(False, description="some events have fractions of seconds, which ordered them")
    config: dict[str, Any] = Field(description="the resolved `data` section that made the set")
    best_known: dict[str, float] = Field(
        default_factory=dict, description="best reachable metrics, synthetic logs only"
    )
    content_hash: str = Field(description="of the files' bytes, the counts and the split")

    @property
    def num_row_groups(self) -> int:
        """Row groups over all files."""
        return sum(len(file.row_groups) for file in self.files)


def num_train_items(
    split: Split, train_counts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None = None
) -> int:
    """Items that training may know of, by the train counts and counts of items 1, 2, ...; 0 is all.

    By time these are items with a training event, else all but cold ones (None: there is none). The others come last in
    a set prepared at once; an append may leave some of them in between.
    """
    if isinstance(split, GlobalTimeSplit):
        return int(train_counts.nonzero()[0].max(initial=-1)) + 1
    if counts is None or counts.all():
        return 0
    return int(counts.nonzero()[0].max()) + 1


def save_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Writes `manifest.json` atomically; a data set without one does not count."""
    target = Path(folder) / MANIFEST_FILE
    draft = target.with_suffix(".json.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(manifest.model_dump(mode="json"), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)


def load_manifest(folder: str | Path) -> Manifest:
    """The manifest of a prepared folder; raises DataError when there is none, or it does not fit its files."""
    at, folder = folder, at_hand(folder)
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DataError(f"{at} is not a prepared data set (no {MANIFEST_FILE}); run `genrec prepare CONFIG`.")
    try:
        manifest = TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is damaged or of another version; run `genrec prepare CONFIG --overwrite`.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.schema_version}, this genrec reads {SCHEMA_VERSION}; "
            "run `genrec prepare CONFIG --overwrite`."
        )
    if manifest.item_vectors is not None:
        _check_size(Path(folder) / ITEM_VECTORS_FILE, manifest.item_vectors.num_bytes)
    for file in manifest.files:
        _check_size(Path(folder) / file.path, file.num_bytes)
        if file.num_superseded != (found := len(load_superseded(folder, file.path))):
            raise DataError(
                f"{superseded_path(folder, file.path)} lists {found} rows and should list {file.num_superseded}: the "
                "data set is damaged; run `genrec prepare CONFIG --overwrite`."
            )
    return manifest


def _check_size(path: Path, num_bytes: int) -> None:
    if not path.is_file() or path.stat().st_size != num_bytes:
        size = path.stat().st_size if path.is_file() else "missing"
        raise DataError(
            f"{path} is {size} and should be {num_bytes} bytes: the data set is damaged; "
            "run `genrec prepare CONFIG --overwrite`."
        )


def length_histogram(lengths: npt.NDArray[np.int64]) -> dict[int, int]:
    """How many sequences of each length bucket: upper bound (power of two) -> users."""
    buckets, users = np.unique(np.ceil(np.log2(lengths)).astype(np.int64), return_counts=True)
    return {int(2**bucket): int(count) for bucket, count in zip(buckets, users, strict=True)}


def content_hash(
    folder: str | Path, files: Sequence[SequenceFile], split: Split, vectors: VectorFacts | None = None
) -> str:
    """SHA-256 over the sequence, item, user and vector files and the split rule, in file order."""
    digest = hashlib.sha256(json.dumps(split.model_dump(mode="json"), sort_keys=True).encode())
    for file in files:
        digest.update(f"{file.path} {file.sha256}".encode())
        digest.update(load_superseded(folder, file.path).tobytes())
    for name in (ITEMS_FILE, USERS_FILE):
        digest.update(f"{name} {file_digest(Path(folder) / name)}".encode())
    if vectors is not None:
        digest.update(f"{ITEM_VECTORS_FILE} {vectors.sha256}".encode())
    return digest.hexdigest()


def describe_sequence_file(folder: str | Path, name: str) -> SequenceFile:
    """What `sequences/NAME` holds, row group by row group, from its `length` column; superseded rows do not count."""
    path = f"{SEQUENCES_DIR}/{name}"
    file = Path(folder) / path
    with pq.ParquetFile(file) as parquet:
        num_groups = parquet.num_row_groups
    groups = []
    for index in range(num_groups):
        lengths: npt.NDArray[np.int32] = read_row_group(folder, path, index, ["length"])["length"].to_numpy()
        groups.append(RowGroup(rows=len(lengths), events=int(lengths.sum())))
    return SequenceFile(
        path=path,
        num_bytes=file.stat().st_size,
        row_groups=tuple(groups),
        sha256=file_digest(file),
        num_superseded=len(load_superseded(folder, path)),
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
