"""Several prepared sets as one, so that one model learns from all of them (music and talk, say).

The catalogues are joined by original id, the sequences are copied with the new item indices, and each set stays a named
part of the manifest: `sequence.mix` gives the parts their shares of the training, and the plan walks through each part
with a cursor of its own. Users stay apart: who is in two sets has two histories.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.config import DataConfig, GlobalTimeSplit, MixtureSource
from genrec.data.log_files import expand_path
from genrec.data.manifest import (
    Manifest,
    Part,
    SequenceFile,
    content_hash,
    describe_sequence_file,
    load_manifest,
    num_train_items,
    save_manifest,
)
from genrec.data.schema import (
    ITEMS_FILE,
    PART_COUNTS_FILE,
    SEQUENCES_DIR,
    USERS_FILE,
    VALUES,
    items_schema,
    sequences_schema,
    users_schema,
)
from genrec.data.sequence_files import read_row_group
from genrec.data.stored_set import at_hand
from genrec.data.vocabulary import MAX_ACTIONS
from genrec.errors import ConfigError, DataError

KeyT = TypeVar("KeyT", str, int)


@dataclass(frozen=True, slots=True)
class _Set:
    """One of the sets, and where its users start in the mixture; `folder` is where this machine reads `place`."""

    name: str
    place: str
    folder: Path
    manifest: Manifest
    first_user: int


@dataclass(frozen=True, slots=True)
class CopyTask:
    """One sequence file of a set, and what its numbers become.

    `items_map` is a file of int32 [num_items + 1], `actions_map` [num_actions + 1] are the new codes by the old ones.
    """

    place: str
    file: SequenceFile
    items_map: Path
    actions_map: tuple[int, ...]
    first_user: int
    path: Path
    values: bool = False
    """Whether the copy has the events' values: NaN where the set has none."""


class MixtureJob:
    """The preparation of a mixture, in the folder `finished`."""

    def __init__(self, config: DataConfig, work: Path) -> None:
        if not isinstance(config.source, MixtureSource):
            raise TypeError("MixtureJob prepares a mixture")
        self.config = config
        self.work = work
        self.finished = work / "set"
        (self.finished / SEQUENCES_DIR).mkdir(parents=True, exist_ok=True)
        self.sets = _open_sets(config, config.source)

    def run(self, copy_all: Callable[[Callable[[CopyTask], str], Sequence[CopyTask]], Iterator[str]]) -> Manifest:
        """The manifest, after everything is written; `copy_all` maps `copy_sequences` over the tasks, in order."""
        actions = _join_actions(self.sets)
        items = self._write_items()
        tasks: list[CopyTask] = []
        for number, part in enumerate(self.sets):
            codes = [0, *(actions.index(name) + 1 for name in part.manifest.actions)]
            for file in part.manifest.files:
                tasks.append(
                    CopyTask(
                        place=part.place,
                        file=file,
                        items_map=self._map_path(number),
                        actions_map=tuple(codes),
                        first_user=part.first_user,
                        path=self.finished / SEQUENCES_DIR / f"part-{len(tasks):05d}.parquet",
                        values=self.config.keep_values,
                    )
                )
        files = tuple(describe_sequence_file(self.finished, name) for name in copy_all(copy_sequences, tasks))
        self._write_users()
        manifest = self._manifest(items, files, actions)
        save_manifest(self.finished, manifest)
        return manifest

    def _map_path(self, number: int) -> Path:
        return self.work / f"items-{number}.npy"

    def _write_items(self) -> pa.Table:
        """Writes the joined catalogue and each set's map into it; an item of several sets has the sum of its counts."""
        tables = [_read(part.folder / ITEMS_FILE).sort_by("index") for part in self.sets]
        kinds = {str(table.schema.field("item").type) for table in tables}
        if len(kinds) > 1:
            raise DataError(
                f"The sets have item ids of different types ({', '.join(sorted(kinds))}), so that none could be the "
                "same item; prepare them with one type of id."
            )
        # Items that training does not know of come last, where the split says so.
        by = "train_count_sum" if isinstance(self.config.split, GlobalTimeSplit) else "count_sum"
        joined = (
            pa.concat_tables(tables)
            .group_by("item", use_threads=False)
            .aggregate([("count", "sum"), ("train_count", "sum"), ("type", "first"), ("title", "first")])
            .sort_by([(by, "descending"), ("item", "ascending")])
        )
        counts = np.zeros((len(joined) + 1, len(tables)), dtype=np.int64)
        for number, table in enumerate(tables):
            found = pc.index_in(table["item"].combine_chunks(), value_set=joined["item"]).to_numpy()
            counts[found + 1, number] = table["train_count"].to_numpy()
            np.save(self._map_path(number), np.concatenate([[0], found + 1]).astype(np.int32))
        columns = ["item", "count_sum", "train_count_sum", "type_first", "title_first"]
        arrays = [pa.array(np.arange(1, len(joined) + 1)), *(joined[name].combine_chunks() for name in columns)]
        items = pa.Table.from_arrays(arrays, schema=items_schema(joined.schema.field("item").type))
        pq.write_table(items, self.finished / ITEMS_FILE)
        np.save(self.finished / PART_COUNTS_FILE, counts)
        return items

    def _write_users(self) -> None:
        tables = [_read(part.folder / USERS_FILE).sort_by("index") for part in self.sets]
        kinds = {table.schema.field("user").type for table in tables}
        kind = kinds.pop() if len(kinds) == 1 else pa.string()
        schema = users_schema(kind)
        with pq.ParquetWriter(str(self.finished / USERS_FILE), schema) as writer:
            for part, table in zip(self.sets, tables, strict=True):
                index = pc.add(table["index"], part.first_user)
                writer.write_table(pa.Table.from_arrays([index, table["user"].cast(kind)], schema=schema))

    def _manifest(self, items: pa.Table, files: tuple[SequenceFile, ...], actions: tuple[str, ...]) -> Manifest:
        manifests = [part.manifest for part in self.sets]
        return Manifest(
            num_users=sum(manifest.num_users for manifest in manifests),
            num_items=len(items),
            num_train_items=num_train_items(self.config.split, items["train_count"].to_numpy()),
            num_events=sum(manifest.num_events for manifest in manifests),
            num_train_events=sum(manifest.num_train_events for manifest in manifests),
            has_times=manifests[0].has_times,
            time_range=(
                min(manifest.time_range[0] for manifest in manifests),
                max(manifest.time_range[1] for manifest in manifests),
            ),
            actions=actions,
            has_values=self.config.keep_values,
            length_histogram=_add_up([manifest.length_histogram for manifest in manifests]),
            split=self.config.split,
            files=files,
            parts=tuple(
                Part(name=part.name, num_files=len(part.manifest.files), content_hash=part.manifest.content_hash)
                for part in self.sets
            ),
            num_rows=sum(manifest.num_rows for manifest in manifests),
            rejected=_add_up([manifest.rejected for manifest in manifests]),
            rejected_files=reduce(add, (manifest.rejected_files for manifest in manifests)),
            filtered=_add_up([manifest.filtered for manifest in manifests]),
            config=self.config.model_dump(mode="json"),
            content_hash=content_hash(self.finished, files, self.config.split),
        )


def copy_sequences(task: CopyTask) -> str:
    """Copies one sequence file, row group by row group, with the mixture's numbers; the name of the new file."""
    items_map = np.load(task.items_map, mmap_mode="r", allow_pickle=False)
    actions_map = np.array(task.actions_map, dtype=np.uint8)
    schema = sequences_schema(values=task.values)
    with pq.ParquetWriter(str(task.path), schema, compression="zstd", use_dictionary=False) as writer:
        for group in range(len(task.file.row_groups)):
            table = read_row_group(task.place, task.file.path, group, schema.names).combine_chunks()
            if task.values and VALUES not in table.column_names:  # columns that are not there are not read
                unknown = np.full(items_map.shape, np.nan, dtype=np.float32)
                table = table.append_column(VALUES, _map_lists(table["items"], unknown))
            changed = {
                "user": pc.add(table["user"], task.first_user),
                "items": _map_lists(table["items"], items_map),
                "actions": _map_lists(table["actions"], actions_map),
            }
            arrays = [changed.get(name, table[name]) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return task.path.name


def current_hashes(source: MixtureSource) -> dict[str, str]:
    """The content hash of every set as it is now, by name."""
    return {name: load_manifest(expand_path(folder)).content_hash for name, folder in sorted(source.sets.items())}


def stale_sets(source: MixtureSource, manifest: Manifest) -> list[str]:
    """The sets that are not what they were when the mixture was made of them, as sentences."""
    now = current_hashes(source)
    return [f"{part.name} has changed since" for part in manifest.parts if now.get(part.name) != part.content_hash]


def _map_lists(column: pa.ChunkedArray, codes: npt.NDArray[Any]) -> pa.ListArray:
    """Lists of the same lengths whose values are `codes` by the old values."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = pc.list_value_length(lists).to_numpy()
    borders = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(borders, pa.array(codes[lists.flatten().to_numpy()]))


def _open_sets(config: DataConfig, source: MixtureSource) -> list[_Set]:
    """The sets in the order of their names; raises an error when they cannot become one."""
    changing = [
        name for name in ("min_user_events", "min_item_events", "min_value") if getattr(config, name) not in (1, None)
    ]
    if changing:
        raise ConfigError(
            f"data.{changing[0]} filters a log, and a mixture is made of prepared sets; leave it out here and prepare "
            "the sets with it."
        )
    sets: list[_Set] = []
    first_user = 0
    for name, folder in sorted(source.sets.items()):
        path = expand_path(folder)
        manifest = load_manifest(path)
        if manifest.parts:
            raise DataError(f"{path} is a mixture itself; name its sets in data.source.sets instead.")
        if manifest.item_vectors is not None and manifest.item_vectors.num_cold_items:
            raise DataError(
                f"{path} has {manifest.item_vectors.num_cold_items} cold items, and a mixture has no vectors to know "
                "them by; prepare it without data.item_vectors.cold_items."
            )
        if manifest.split != config.split:
            raise DataError(
                f"{path} was prepared with data.split {manifest.split.model_dump(mode='json')} and the mixture asks "
                f"for {config.split.model_dump(mode='json')}; prepare all of them with one split."
            )
        if sets and manifest.has_times != sets[0].manifest.has_times:
            raise DataError(
                f"Of {sets[0].place} and {path} only one has event times; mix sets that all have them, or none."
            )
        sets.append(_Set(name, path, at_hand(path), manifest, first_user))
        first_user += manifest.num_users
    if config.keep_values and not any(part.manifest.has_values for part in sets):
        raise DataError(
            "data.keep_values is set, and none of the sets has values; prepare them with data.keep_values=true, or "
            "leave it out here."
        )
    return sets


def _join_actions(sets: Sequence[_Set]) -> tuple[str, ...]:
    """Names of actions 1, 2, ... of the mixture: those of the first set, then what the others add."""
    names = tuple(dict.fromkeys(name for part in sets for name in part.manifest.actions))
    if len(names) > MAX_ACTIONS:
        raise DataError(
            f"The sets have {len(names)} different actions, at most {MAX_ACTIONS} are possible; prepare them with "
            "fewer kinds of action."
        )
    return names


def _add_up(counts: Sequence[dict[KeyT, int]]) -> dict[KeyT, int]:
    keys = sorted({key for part in counts for key in part})
    return {key: sum(part.get(key, 0) for part in counts) for key in keys}


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
