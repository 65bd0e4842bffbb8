"""The phases of `genrec prepare`.

    open_log         any source -> parts: names, headers and footers, nothing else is read        (sources.py)
    scatter          a task a part: rows are checked, bad ones put aside, events sorted into shards by their user
    keep_core        tasks a shard, repeated: k-core filters; then item indices by falling count
    write_sequences  a task a shard: stable sort by user and time, sequences to Parquet, counts of what training sees
    manifest         last; then the folder gets its name in one rename                            (prepared_folder.py)

The tasks run on Ray Data. Between them events live in files beside the prepared folder, not in memory, and a task holds
one block of a part or one shard. On a cluster the prepared folder must be on a file system that all nodes see.
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
from genrec.data.filters import CountTask, Kept, count_shard, keep_core, save_ids
from genrec.data.manifest import (
    Manifest,
    RejectedFile,
    SourceFile,
    content_hash,
    describe_sequence_file,
    save_manifest,
)
from genrec.data.quarantine import Quarantine, scatter_or_reject, settle
from genrec.data.ray_session import map_tasks
from genrec.data.scatter import Piece, ScatterResult, ScatterTask
from genrec.data.schema import ITEMS_FILE, REJECTED_DIR, SEQUENCES_DIR, USERS_FILE, users_schema
from genrec.data.sequences import SequenceResult, SequenceTask, write_sequences
from genrec.data.sources import Log
from genrec.data.vocabulary import items_table, name_actions, order_items
from genrec.errors import DataError

SHARD_EVENTS = 2_000_000

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Shards:
    """The log after its first pass: the pieces of every shard that has any, and how to read their ids."""

    pieces: tuple[tuple[Piece, ...], ...]
    integer_users: bool
    integer_items: bool
    actions: tuple[str, ...]
    num_rows: int
    rejected: dict[str, int]
    rejected_files: tuple[RejectedFile, ...]
    num_small_values: int
    has_subseconds: bool


class PrepareJob:
    """One preparation: the phases of the module's docstring, in order. `finished` is the folder that it fills."""

    def __init__(self, config: DataConfig, log: Log, work: Path, report: Callable[[str, float], None]) -> None:
        self.config = config
        self.log = log
        self.work = work
        self.report = report
        self.finished = work / "set"
        (self.finished / SEQUENCES_DIR).mkdir(parents=True)
        (work / "events").mkdir()

    def run(self) -> Manifest:
        """The manifest, after everything is written to `finished`."""
        shards = self._scatter()
        kept = self._filter(shards)
        return self._write(shards, kept)

    def _map(self, function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], phase: str) -> Iterator[ResultT]:
        return map_tasks(function, tasks, lambda done: self.report(phase, done / len(tasks)))

    def _scatter(self) -> _Shards:
        config, log = self.config, self.log
        num_shards = config.num_shards or max(1, round(log.num_rows / SHARD_EVENTS))
        tasks = [
            ScatterTask(
                index=index,
                part=part,
                num_shards=num_shards,
                time_unit=log.time_unit,
                min_value=config.min_value,
                events_dir=self.work / "events",
                rejected_dir=self.finished / REJECTED_DIR,
                max_time=config.max_time,
            )
            for index, part in enumerate(log.parts)
        ]
        quarantine = Quarantine(config.max_rejected_files, {file.path: file for file in log.rejected_files})
        results = settle(tasks, self._map(scatter_or_reject, tasks, "read"), quarantine) if tasks else []
        rejected = _check_rejected(results, config.max_rejected_fraction)
        pieces: dict[int, list[Piece]] = {}
        for result in results:
            for piece in result.pieces:
                pieces.setdefault(piece.shard, []).append(piece)
        small = sum(result.num_small_values for result in results)
        if not pieces:
            dropped = f" ({small} rows have a value below data.min_value = {config.min_value})" if small else ""
            raise DataError(f"No event of the log can be used{dropped}; check data.source and data.min_value.")
        return _Shards(
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

    def _filter(self, shards: _Shards) -> Kept:
        tasks = [
            CountTask(pieces, shards.integer_users, shards.integer_items, self.config.min_user_events)
            for pieces in shards.pieces
        ]
        kept = keep_core(
            tasks, self.config.min_item_events, self.work, lambda tasks: self._map(count_shard, tasks, "filter")
        )
        if not kept.num_events:
            raise DataError(
                f"The filters drop every event (min_user_events = {self.config.min_user_events}, min_item_events = "
                f"{self.config.min_item_events}, iterated); lower one of them."
            )
        return kept

    def _write(self, shards: _Shards, kept: Kept) -> Manifest:
        items = order_items(kept.items)
        save_ids(self.work / "items.arrow", items["item"])
        first_users = np.cumsum([0, *kept.users_per_shard])
        num_users = int(first_users[-1])
        row_group_users = min(max(num_users // 64, 64), 4096)
        tasks = [
            SequenceTask(
                pieces=pieces,
                integer_users=shards.integer_users,
                integer_items=shards.integer_items,
                min_user_events=self.config.min_user_events,
                items=self.work / "items.arrow",
                actions=shards.actions,
                split=self.config.split,
                first_user=int(first_user),
                row_group_users=row_group_users,
                path=self.finished / SEQUENCES_DIR / f"part-{pieces[0].shard:05d}.parquet",
            )
            for pieces, first_user in zip(shards.pieces, first_users[:-1], strict=True)
        ]
        totals = _Totals(len(items))
        _write_users(self.finished / USERS_FILE, totals.follow(self._map(write_sequences, tasks, "write")))
        pq.write_table(items_table(items, totals.train_counts, self.log.item_info), self.finished / ITEMS_FILE)
        self.report("finish", 0.0)
        if not totals.train_counts.any():
            raise DataError(
                "The split leaves no event for training; move data.split.validation_from to a later second."
            )
        names = sorted(path.name for path in (self.finished / SEQUENCES_DIR).iterdir())
        files = tuple(describe_sequence_file(self.finished, name) for name in names)
        best_known = dict(self.log.best_known)
        small = {"min_value": shards.num_small_values} if shards.num_small_values else {}
        manifest = Manifest(
            num_users=num_users,
            num_items=len(items),
            num_events=kept.num_events,
            num_train_events=int(totals.train_counts.sum()),
            has_times="time" in self.log.columns,
            time_range=(totals.first_time, totals.last_time),
            actions=shards.actions,
            length_histogram=dict(sorted(totals.lengths.items())),
            split=self.config.split,
            files=files,
            num_rows=shards.num_rows,
            rejected=shards.rejected,
            rejected_files=shards.rejected_files,
            filtered=small | kept.dropped,
            source_files=tuple(SourceFile(path=file.name, num_bytes=file.num_bytes) for file in self.log.files),
            has_subseconds=shards.has_subseconds,
            config=self.config.model_dump(mode="json"),
            # It is known for the whole log's last events; a filter or another split asks another question.
            best_known={} if small | kept.dropped or isinstance(self.config.split, GlobalTimeSplit) else best_known,
            content_hash=content_hash(self.finished, files, self.config.split),
        )
        save_manifest(self.finished, manifest)
        return manifest


class _Totals:
    """Adds up what the shards hold."""

    def __init__(self, num_items: int) -> None:
        self.train_counts: npt.NDArray[np.int64] = np.zeros(num_items, dtype=np.int64)
        self.lengths: Counter[int] = Counter()
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
                yield result.users


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
    if isinstance(config.split, GlobalTimeSplit) and "time" not in log.columns:
        raise DataError("data.split global-time needs event times, and the log has none; use leave-one-out.")


def _check_rejected(results: Sequence[ScatterResult], max_fraction: float) -> dict[str, int]:
    """Bad rows by reason; raises DataError with a table of them when they are more than `max_fraction` of the log."""
    num_rows = sum(result.num_rows for result in results)
    if not num_rows:
        raise DataError("The log is empty: its files hold no rows; check data.source.path.")
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for result in results:
        rejected.update(result.rejected)
        examples = result.examples | examples
    num_bad = rejected.total()
    if num_bad > max_fraction * num_rows:
        lines = [f"  {count:>12,}  {reason:<24}{examples[reason]}" for reason, count in rejected.most_common()]
        raise DataError(
            f"{num_bad:,} of {num_rows:,} rows are bad, more than data.max_rejected_fraction = {max_fraction}; mend "
            "the log (integer times count data.source.columns.time_unit), or raise it to keep the rows that are good:\n"
            + "\n".join(lines)
        )
    return dict(rejected)
