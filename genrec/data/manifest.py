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

from genrec.config import Split
from genrec.data.schema import ITEMS_FILE, MANIFEST_FILE, SEQUENCES_DIR, USERS_FILE
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

    path: str
    num_bytes: int
    row_groups: tuple[RowGroup, ...]


class Manifest(_Frozen):
    """Everything that a plan, an evaluation or a report must know without reading the sequences."""

    schema_version: int = SCHEMA_VERSION
    num_users: int
    num_items: int = Field(description="without padding: item indices are 1 .. num_items")
    num_events: int
    num_train_events: int
    has_times: bool = Field(description="False: `times` only count positions, the log had none")
    time_range: tuple[int, int] = Field(description="first and last second of the log")
    actions: tuple[str, ...] = Field((), description="names of actions 1, 2, ...; empty when the log has none")
    length_histogram: dict[int, int] = Field(description="upper bound of a length bucket (power of two) -> users")
    split: Split
    files: tuple[SequenceFile, ...]
    rejected: dict[str, int] = Field(default_factory=dict, description="bad rows by reason")
    filtered: dict[str, int] = Field(default_factory=dict, description="rows dropped by each filter")
    config: dict[str, Any] = Field(description="the resolved `data` section that made the set")
    best_known: dict[str, float] = Field(
        default_factory=dict, description="best reachable metrics, synthetic logs only"
    )
    content_hash: str = Field(description="of the files' bytes, the counts and the split")

    @property
    def num_row_groups(self) -> int:
        """Row groups over all files."""
        return sum(len(file.row_groups) for file in self.files)


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
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise DataError(f"{folder} is not a prepared data set (no {MANIFEST_FILE}); run `genrec prepare CONFIG`.")
    try:
        manifest = TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is damaged or of another version; run `genrec prepare CONFIG --overwrite`.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.schema_version}, this genrec reads {SCHEMA_VERSION}; "
            "run `genrec prepare CONFIG --overwrite`."
        )
    for file in manifest.files:
        found = Path(folder) / file.path
        if not found.is_file() or found.stat().st_size != file.num_bytes:
            size = found.stat().st_size if found.is_file() else "missing"
            raise DataError(
                f"{found} is {size} and should be {file.num_bytes} bytes: the data set is damaged; "
                "run `genrec prepare CONFIG --overwrite`."
            )
    return manifest


def content_hash(folder: str | Path, files: Sequence[SequenceFile], split: Split) -> str:
    """SHA-256 over the bytes of the sequence, item and user files and the split rule, in file order."""
    digest = hashlib.sha256(json.dumps(split.model_dump(mode="json"), sort_keys=True).encode())
    for name in [*(file.path for file in files), ITEMS_FILE, USERS_FILE]:
        digest.update(name.encode())
        with (Path(folder) / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def describe_sequence_file(folder: str | Path, name: str) -> SequenceFile:
    """Rows and events of every row group of `sequences/NAME`, read from its `length` column."""
    path = Path(folder) / SEQUENCES_DIR / name
    with pq.ParquetFile(path) as parquet:
        groups = []
        for index in range(parquet.num_row_groups):
            lengths: npt.NDArray[np.int32] = parquet.read_row_group(index, columns=["length"])["length"].to_numpy()
            groups.append(RowGroup(rows=len(lengths), events=int(lengths.sum())))
    return SequenceFile(path=f"{SEQUENCES_DIR}/{name}", num_bytes=path.stat().st_size, row_groups=tuple(groups))
