"""The phases of `genrec prepare`.

    open_log           any source -> parts: names, headers and footers, nothing else is read        (sources.py)
    scatter            a task a part: rows are checked, bad ones put aside, events sorted into shards by their user
    build_vocabulary   the items of all parts, each once, and where each part's items stand among them
    keep_core          k-core filters, tasks a shard, repeated; then item indices by falling count
    join_vectors       with data.item_vectors: a vector for each item, and cold items behind the others
    write_sequences    a task a shard: stable sort by user and time, sequences to Parquet, counts of what training sees
    manifest           last; then the folder gets its name in one rename                            (prepared_folder.py)

The tasks run on the Ray cluster there is, else in processes of this machine (local_tasks.py). Between them events live
in files beside the prepared folder (runs.py), not in memory, and a task holds one run or one shard. Results of tasks
are files, too (saved_tasks.py): a preparation that was killed goes on where it was. On a cluster the prepared folder
must be on a file system that all nodes see.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import DataConfig, GlobalTimeSplit
from genrec.data.filters import CountTask, Kept, count_shard, keep_core
from genrec.data.item_vectors import check_vectors, join_vectors
from genrec.data.local_tasks import RunTasks
from genrec.data.manifest import (
    Manifest,
    RejectedFile,
    SequenceFile,
    SourceFile,
    VectorFacts,
    content_hash,
    num_train_items,
    save_manifest,
)
from genrec.data.quarantine import Quarantine, check_rejected_rows, scatter_or_reject, settle
from genrec.data.runs import Piece
from genrec.data.saved_tasks import map_saved, num_saved
from genrec.data.scatter import ScatterTask
from genrec.data.schema import ITEMS_FILE, REJECTED_DIR, SEQUENCES_DIR, USERS_FILE, users_schema
from genrec.data.sequences import SequenceResult, SequenceTask, load_shard_users, train_until, write_sequences
from genrec.data.sources import Log
from genrec.data.vocabulary import Vocabulary, build_vocabulary, items_table, name_actions, numbered_items, order_items
from genrec.errors import DataError

SHARD_EVENTS = 2_000_000

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

Progress = Callable[[str, float, float], None]
"""Called with a phase (open, read, items, filter, write, finish), and how many of how many events are through it.

Where events are not counted, it is a fraction of 1.
"""


@dataclass(frozen=True, slots=True)
class _Shards:
    """The log after its first pass: the pieces of every shard that has any, and how to read their ids."""

    runs: tuple[str, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    integer_users: bool
    integer_items: bool
    actions: tuple[str, ...]
    num_rows: int
    rejected: dict[str, int]
    rejected_files: tuple[RejectedFile, ...]
    num_small_values: int
    has_subseconds: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Events of each shard, before the filters."""
        return tuple(sum(piece.num_events for piece in pieces) for pieces in self.pieces)


class PrepareJob:
    """One preparation: the phases of the module's docstring, in order. `finished` is the folder that it fills."""

    def __init__(self, config: DataConfig, log: Log, work: Path, run_tasks: RunTasks, report: Progress) -> None:
        self.config = config
        self.log = log
        self.work = work
        self.run_tasks = run_tasks
        self.report = report
        self.num_shards = config.num_shards or max(1, round(log.num_rows / SHARD_EVENTS))
        self.finished = work / "set"
        for folder in (self.finished / SEQUENCES_DIR, work / "events", work / "users"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def num_tasks(self) -> int:
        """Tasks that read the log and write sequences; the filters have more."""
        return len(self.log.parts) + self.num_shards

    @property
    def num_done(self) -> int:
        """How many of `num_tasks` an earlier, killed preparation has done."""
        return num_saved(self.work / "read") + num_saved(self.work / "write")

    def run(self) -> Manifest:
        """The manifest, after everything is written to `finished`."""
        shards = self._scatter()
        self.report("items", 0.0, 1.0)
        vocabulary = build_vocabulary(shards.runs, integer_items=shards.integer_items)
        kept = self._filter(shards, vocabulary)
        return self._write(shards, vocabulary, kept)

    def _map(
        self,
        function: Callable[[TaskT], ResultT],
        tasks: Sequence[TaskT],
        sizes: Sequence[int],
        phase: str,
        number: int | None = None,
    ) -> Iterator[ResultT]:
        """Results in the order of the tasks; their `sizes` in events are the progress, `number` tells rounds apart."""
        folder = self.work / (phase if number is None else f"{phase}-{number:03d}")
        done = 0
        self.report(phase, 0, sum(sizes))
        for size, result in zip(sizes, map_saved(self.run_tasks, function, tasks, folder), strict=True):
            done += size
            self.report(phase, done, sum(sizes))
            yield result

    def _scatter(self) -> _Shards:
        config, log = self.config, self.log
        tasks = [
            ScatterTask(
                index=index,
                part=part,
                num_shards=self.num_shards,
                time_unit=log.time_unit,
                min_value=config.min_value,
                events_dir=self.work / "events",
                rejected_dir=self.finished / REJECTED_DIR,
                max_time=config.max_time,
                keep_values=config.keep_values,
            )
            for index, part in enumerate(log.parts)
        ]
        quarantine = Quarantine(config.max_rejected_files, {file.path: file for file in log.rejected_files})
        outcomes = self._map(scatter_or_reject, tasks, [part.num_rows for part in log.parts], "read")
        results = settle(tasks, outcomes, quarantine)
        if not results and quarantine.files:
            first = next(iter(quarantine.files.values()))
            raise DataError(f"No file of the log can be used: {first.message}")
        if not sum(result.num_rows for result in results):
            raise DataError("The log is empty: its files hold no rows; check data.source.path.")
        rejected = check_rejected_rows(results, config.max_rejected_fraction)
        pieces: dict[int, list[Piece]] = {}
        for result in results:
            for piece in result.pieces:
                pieces.setdefault(piece.shard, []).append(piece)
        small = sum(result.num_small_values for result in results)
        if not pieces:
            dropped = f" ({small} rows have a value below data.min_value = {config.min_value})" if small else ""
            raise DataError(f"No event of the log can be used{dropped}; check data.source and data.min_value.")
        return _Shards(
            runs=tuple(run for result in results for run in result.runs),
            pieces=tuple(tuple(pieces[shard]) for shard in sorted(pieces)),
            integer_users=log.text_ids and all(result.integer_users for result in results),
            integer_items=log.text_ids and all(result.integer_items for result in results),
            actions=name_actions(result.actions for result in results),
            num_rows=sum(result.num_rows for result in results),
            rejected=rejected,
            rejected_files=tuple(quarantine.files.values()),
            num_small_values=small,
            has_subseconds=any(result.has_subseconds for result in results),
        )

    def _filter(self, shards: _Shards, vocabulary: Vocabulary) -> Kept:
        tasks = [
            CountTask(
                pieces=pieces,
                integer_users=shards.integer_users,
                num_items=len(vocabulary),
                min_user_events=self.config.min_user_events,
                train_until=train_until(self.config.split),
            )
            for pieces in shards.pieces
        ]
        kept = keep_core(
            tasks,
            vocabulary.counts,
            self.config.min_item_events,
            self.work,
            lambda tasks, number: self._map(count_shard, tasks, shards.sizes, "filter", number),
        )
        if not kept.num_events:
            raise DataError(
                f"The filters drop every event (min_user_events = {self.config.min_user_events}, min_item_events = "
                f"{self.config.min_item_events}, iterated); lower one of them."
            )
        return kept

    def _write(self, shards: _Shards, vocabulary: Vocabulary, kept: Kept) -> Manifest:
        order = order_items(vocabulary.items, kept.deciding_counts, kept.counts > 0)
        items = numbered_items(vocabulary, order, kept.counts)
        indices = np.zeros(len(vocabulary), dtype=np.int32)
        indices[order] = np.arange(1, len(order) + 1)
        np.save(self.work / "item-indices.npy", indices)
        catalogue, vectors = items, None
        if self.config.item_vectors is not None:
            catalogue, vectors = join_vectors(self.config.item_vectors, items, self.finished)
        first_users = np.cumsum([0, *kept.users_per_shard])
        row_group_users = min(max(int(first_users[-1]) // 64, 64), 4096)
        tasks = [
            SequenceTask(
                pieces=pieces,
                integer_users=shards.integer_users,
                min_user_events=self.config.min_user_events,
                item_indices=self.work / "item-indices.npy",
                num_items=len(items),
                actions=shards.actions,
                split=self.config.split,
                first_user=int(first_user),
                row_group_users=row_group_users,
                path=self.finished / SEQUENCES_DIR / f"part-{pieces[0].shard:05d}.parquet",
                users_path=self.work / "users" / f"part-{pieces[0].shard:05d}.arrow",
            )
            for pieces, first_user in zip(shards.pieces, first_users[:-1], strict=True)
        ]
        totals = _Totals(catalogue["count"].to_numpy())
        results = self._map(write_sequences, tasks, shards.sizes, "write")
        _write_users(self.finished / USERS_FILE, totals.follow(results))
        pq.write_table(items_table(catalogue, totals.train_counts, self.log.item_info), self.finished / ITEMS_FILE)
        if not totals.train_counts.any():
            raise DataError(
                "The split leaves no event for training; move data.split.validation_from to a later second."
            )
        return self._finish(shards, kept, totals, vectors)

    def _finish(self, shards: _Shards, kept: Kept, totals: "_Totals", vectors: VectorFacts | None) -> Manifest:
        self.report("finish", 0.0, 1.0)
        best_known = dict(self.log.best_known)
        small = {"min_value": shards.num_small_values} if shards.num_small_values else {}
        manifest = Manifest(
            num_users=sum(kept.users_per_shard),
            num_items=len(totals.train_counts),
            num_train_items=num_train_items(self.config.split, totals.train_counts, totals.counts),
            item_vectors=vectors,
            num_events=kept.num_events,
            num_train_events=int(totals.train_counts.sum()),
            has_times="time" in self.log.columns,
            time_range=(totals.first_time, totals.last_time),
            actions=shards.actions,
            has_values=self.config.keep_values,
            length_histogram=dict(sorted(totals.lengths.items())),
            split=self.config.split,
            files=tuple(totals.files),
            num_rows=shards.num_rows,
            rejected=shards.rejected,
            rejected_files=shards.rejected_files,
            filtered=small | kept.dropped,
            source_files=tuple(SourceFile(path=file.name, num_bytes=file.num_bytes) for file in self.log.files),
            has_subseconds=shards.has_subseconds,
            config=self.config.model_dump(mode="json"),
            # It is known for the whole log's last events; a filter or another split asks another question.
            best_known={} if small | kept.dropped or isinstance(self.config.split, GlobalTimeSplit) else best_known,
            content_hash=content_hash(self.finished, totals.files, self.config.split, vectors),
        )
        save_manifest(self.finished, manifest)
        return manifest


class _Totals:
    """Adds up what the shards hold."""

    def __init__(self, counts: npt.NDArray[np.int64]) -> None:
        """`counts` [num_items] are the events of each item, by index."""
        self.counts = counts
        self.train_counts: npt.NDArray[np.int64] = np.zeros(len(counts), dtype=np.int64)
        self.lengths: Counter[int] = Counter()
        self.files: list[SequenceFile] = []
        self.first_time = np.iinfo(np.int64).max
        self.last_time = np.iinfo(np.int64).min

    def follow(self, results: Iterable[SequenceResult | None]) -> Iterator[pa.Array]:
        """The users of each shard that has any, while its counts are added."""
        for result in results:
            if result is not None:
                self.train_counts[result.train_items - 1] += result.train_counts
                self.lengths.update(result.lengths)
                self.first_time = min(self.first_time, result.first_time)
                self.last_time = max(self.last_time, result.last_time)
                self.files.append(result.file)
                yield load_shard_users(result.users_path)


def _write_users(path: Path, shards: Iterator[pa.Array]) -> None:
    first = next(shards)
    schema = users_schema(first.type)
    num_users = 0
    with pq.ParquetWriter(str(path), schema) as writer:
        for users in (first, *shards):
            index = pa.array(np.arange(num_users, num_users + len(users)))
            writer.write_table(pa.Table.from_arrays([index, users], schema=schema))
            num_users += len(users)


def check_settings(config: DataConfig, log: Log) -> None:
    """Raises DataError when a setting needs a column that the log does not have."""
    if config.min_value is not None and "value" not in log.columns:
        raise DataError(
            f"data.min_value = {config.min_value} needs a value column, and the log has none; set "
            "data.source.columns.value, or min_value to null."
        )
    if config.keep_values and "value" not in log.columns:
        raise DataError(
            "data.keep_values needs a value column, and the log has none; set data.source.columns.value, or "
            "keep_values to false."
        )
    if isinstance(config.split, GlobalTimeSplit) and "time" not in log.columns:
        raise DataError("data.split global-time needs event times, and the log has none; use leave-one-out.")
    if config.max_time is not None and "time" not in log.columns:
        raise DataError(f"data.max_time = {config.max_time} needs event times, and the log has none; set it to null.")
    if config.item_vectors is not None:
        check_vectors(config.item_vectors)
