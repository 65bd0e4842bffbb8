"""`genrec prepare --append`: new files of the log join a prepared set, as if all had been prepared at once.

    read      the files that the manifest does not list: checked, counted, numbered                  (append_read.py)
    merge     users with new events get their whole sequence anew, in new files                      (append_merge.py)
    publish   a folder of links to the files that stay, the new files and the lists of superseded rows takes the set's
              name in one rename; a kill before it leaves the set as it was

The numbers of users, items and actions that the set has already stay what they are, so what was trained on it stays
valid; new ones get the next numbers. That is the one difference to preparing everything at once. Item vectors are read
again, all of them, as their file is then; a cold item that has got events keeps its number.

It runs in this process, without Ray, and holds the events of the new files in memory.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import CsvSource, DataConfig, ParquetSource
from genrec.data.append_merge import IntArray, MergeResult, MergeTask, lengths_of, merge
from genrec.data.append_read import NewEvents, ReadTask, number_events, read_parts
from genrec.data.item_vectors import check_vectors, join_vectors
from genrec.data.manifest import (
    Manifest,
    RowGroup,
    SequenceFile,
    SourceFile,
    VectorFacts,
    content_hash,
    load_manifest,
    num_train_items,
    save_manifest,
)
from genrec.data.prepare import config_differences
from genrec.data.prepare_job import Progress
from genrec.data.prepared_folder import keep_only, publish, restore, work_folder
from genrec.data.quarantine import Quarantine, check_rejected_rows
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE, REJECTED_DIR, SEQUENCES_DIR, USERS_FILE, users_schema
from genrec.data.sequence_files import load_superseded, locate_rows, superseded_path
from genrec.data.sources import Log, list_files, open_log
from genrec.data.stored_set import worked_on
from genrec.data.vocabulary import items_table
from genrec.errors import DataError

FILE_EVENTS = 1_000_000  # of a new sequence file, about; a thread writes one
PART_ROWS = 250_000  # of a Parquet file that one thread reads
MAX_SUPERSEDED_FRACTION = 0.3  # of a file; what is left of it then moves to a new file, too

Places = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Appended:
    """The set's manifest, and how many files and events were new."""

    manifest: Manifest
    num_files: int
    num_events: int


def append(config: DataConfig, progress: Progress | None = None) -> Appended:
    """Adds the files that are new in the log to `config.prepared`; does nothing when there are none.

    Raises DataError when the set is missing, a file that is in it has changed, the settings are not the set's or cannot
    be appended under, more than `max_rejected_files` of the new files or `max_rejected_fraction` of their rows are bad,
    or the result could differ from preparing everything at once. The set then stays as it was.
    """
    with worked_on(config) as here:
        return _append(here, progress)


def _append(config: DataConfig, progress: Progress | None) -> Appended:
    target = Path(config.prepared).absolute()
    restore(target)
    load_manifest(target)
    with work_folder(target) as work:
        keep_only(work)  # what a killed `prepare` left there
        manifest = load_manifest(target)
        check_appendable(manifest, config)
        log = _open_new(manifest, config)
        if not log.files:
            return Appended(manifest, 0, 0)
        if config.item_vectors is not None:
            check_vectors(config.item_vectors)
        job = AppendJob(config, manifest, log, target, work, progress or (lambda phase, done, total: None))
        appended = job.run()
        publish(work, job.finished, target)
    return Appended(appended, len(log.files), appended.num_events - manifest.num_events)


def check_appendable(manifest: Manifest, config: DataConfig) -> None:
    """Raises DataError when an append to this set could not give what preparing everything at once gives."""
    again = "run `genrec prepare CONFIG --overwrite` to prepare everything."
    differences = config_differences(manifest, config)
    if differences:
        raise DataError(f"{config.prepared} was prepared with other settings ({'; '.join(differences)}); {again}")
    if not isinstance(config.source, ParquetSource | CsvSource):
        raise DataError(f"Only Parquet and CSV logs get new files; data.source.name is {config.source.name}.")
    if config.min_user_events > 1 or config.min_item_events > 1:
        raise DataError(
            f"data.min_user_events = {config.min_user_events} and data.min_item_events = {config.min_item_events} drop "
            f"users and items that new events could bring back, so an append needs both to be 1; {again}"
        )
    if not manifest.source_files:
        raise DataError(f"{config.prepared} does not list the files that it was made of (an older version); {again}")


def _open_new(manifest: Manifest, config: DataConfig) -> Log:
    """The files that the set does not have; raises DataError when one that it has is not the same any more."""
    assert isinstance(config.source, ParquetSource | CsvSource)
    present = {file.name: file.num_bytes for file in list_files(config.source)}
    for file in manifest.source_files:
        if present.get(file.path) != file.num_bytes:
            now = f"has {present[file.path]:,} bytes" if file.path in present else "is missing"
            raise DataError(
                f"{file.path} of {config.source.path} {now} and had {file.num_bytes:,} bytes when it was prepared; put "
                "it back, or run `genrec prepare CONFIG --overwrite` to prepare everything."
            )
    known = {file.path for file in manifest.source_files}
    limit = config.max_rejected_files
    return open_log(config.source, Path(), max_rejected_files=limit, known=known, part_rows=PART_ROWS)


@dataclass(frozen=True, slots=True)
class _Moves:
    """What happens to the old files: row groups (path, group, events) to merge, and the rows that this supersedes.

    `changed` describes the files that lose rows as they will be; those that lose all are `dropped`.
    """

    groups: tuple[tuple[str, int, int], ...]
    compacted: frozenset[str]
    superseded: dict[str, IntArray]
    changed: dict[str, SequenceFile]
    dropped: frozenset[str]


class AppendJob:
    """One append: the phases of the module's docstring, in order. `finished` is the folder that it fills."""

    def __init__(
        self,
        config: DataConfig,
        manifest: Manifest,
        log: Log,
        target: Path,
        work: Path,
        report: Progress,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.log = log
        self.target = target
        self.report = report
        self.finished = work / "append"
        (self.finished / SEQUENCES_DIR).mkdir(parents=True)
        (self.finished / REJECTED_DIR).mkdir()

    def run(self) -> Manifest:
        """The manifest, after everything is written to `finished`."""
        quarantine = Quarantine(self.config.max_rejected_files, {bad.path: bad for bad in self.log.rejected_files})
        parts = read_parts(self._read_tasks(), quarantine)
        rejected = check_rejected_rows(parts, self.config.max_rejected_fraction)
        self.report("read", 1.0, 1.0)
        if any(part.events is not None and len(part.events) for part in parts):
            new = number_events(self.target, parts, self.manifest.actions, text_ids=self.log.text_ids)
            counts = self._merge(new)
        else:
            counts = self._keep()
        self.report("finish", 0.0, 1.0)
        self._link_rejected()
        filtered = Counter(self.manifest.filtered)
        filtered.update({"min_value": sum(part.num_small_values for part in parts)})
        listed = [SourceFile(path=file.name, num_bytes=file.num_bytes) for file in self.log.files]
        manifest = self.manifest.model_copy(
            update={
                **counts,
                "num_rows": self.manifest.num_rows + sum(part.num_rows for part in parts),
                "rejected": dict(Counter(self.manifest.rejected) + Counter(rejected)),
                "rejected_files": (*self.manifest.rejected_files, *quarantine.files.values()),
                "filtered": dict(+filtered),
                "source_files": tuple(sorted([*self.manifest.source_files, *listed], key=lambda file: file.path)),
                "config": self.config.model_dump(mode="json"),
                "best_known": {},
            }
        )
        save_manifest(self.finished, manifest)
        return manifest

    def _read_tasks(self) -> list[ReadTask]:
        folder = self.target / REJECTED_DIR
        first = 1 + max((int(path.stem.split("-")[1]) for path in folder.glob("part-*.parquet")), default=-1)
        return [
            ReadTask(
                part,
                self.log.time_unit,
                self.config.min_value,
                self.config.max_time,
                self.config.keep_values,
                self.finished / REJECTED_DIR / f"part-{first + index:05d}.parquet",
            )
            for index, part in enumerate(self.log.parts)
        ]

    def _merge(self, new: NewEvents) -> dict[str, object]:
        """Writes the sequences, users and items, and returns what changes in the manifest."""
        num_users = self.manifest.num_users + len(new.users)
        place_of_user = np.full(num_users, -1, dtype=np.int32)
        place_of_user[new.events.users] = np.arange(len(new.events.users), dtype=np.int32)
        moves = self._plan_moves(place_of_user)
        tasks = self._merge_tasks(moves, new)
        num_items = len(new.item_counts) - 1
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            futures = [pool.submit(merge, task, new.events, place_of_user, num_items) for task in tasks]
            try:
                results: list[MergeResult] = []
                for future in futures:
                    results.append(future.result())
                    self.report("write", len(results) / len(tasks), 1.0)
            finally:
                pool.shutdown(cancel_futures=True)
        files = (*self._link_files(moves), *(result.file for result in results))
        items, vectors = self._write_items(new, results)
        train_counts = items["train_count"].to_numpy()
        self._write_users(new.users)
        lengths = Counter(self.manifest.length_histogram)
        for result in results:
            lengths.update(result.lengths)
        first, last = self.manifest.time_range
        return {
            "num_users": num_users,
            "num_items": len(items),
            "item_vectors": vectors,
            "num_events": self.manifest.num_events + len(new.events.items),
            "num_train_items": num_train_items(self.config.split, train_counts, items["count"].to_numpy()),
            "num_train_events": int(train_counts.sum()),
            "time_range": (min(first, int(new.events.times.min())), max(last, int(new.events.times.max()))),
            "actions": (*self.manifest.actions, *new.actions),
            "length_histogram": dict(sorted((+lengths).items())),
            "files": files,
            "has_subseconds": self.manifest.has_subseconds or new.has_subseconds,
            "content_hash": content_hash(self.finished, files, self.config.split, vectors),
        }

    def _keep(self) -> dict[str, object]:
        """Takes over everything: the new files hold no event."""
        self._link_files(_Moves((), frozenset(), {}, {}, frozenset()))
        names = (ITEMS_FILE, USERS_FILE, *([ITEM_VECTORS_FILE] if self.manifest.item_vectors else []))
        for name in names:
            _link(self.target / name, self.finished / name)
        return {}

    def _plan_moves(self, place_of_user: Places) -> _Moves:
        groups: list[tuple[str, int, int]] = []
        compacted, dropped = set(), set()
        superseded: dict[str, IntArray] = {}
        changed: dict[str, SequenceFile] = {}
        for file in self.manifest.files:
            rows = locate_rows(self.target, file.path, ["user", "length"])
            moves = place_of_user[rows["user"].to_numpy()] >= 0
            if not moves.any():
                continue
            if file.num_superseded + moves.sum() > MAX_SUPERSEDED_FRACTION * (file.num_superseded + len(rows)):
                compacted.add(file.path)
                moves[:] = True
            moved = rows.filter(pa.array(moves))
            groups += [
                (file.path, number, group.events)
                for number, group in enumerate(_row_groups(moved, len(file.row_groups)))
                if group.rows
            ]
            if moves.all():
                dropped.add(file.path)
                continue
            superseded[file.path] = np.union1d(load_superseded(self.target, file.path), moved["row"].to_numpy())
            left = _row_groups(rows.filter(pa.array(~moves)), len(file.row_groups))
            changed[file.path] = file.model_copy(
                update={"row_groups": left, "num_superseded": len(superseded[file.path])}
            )
        return _Moves(tuple(groups), frozenset(compacted), superseded, changed, frozenset(dropped))

    def _merge_tasks(self, moves: _Moves, new: NewEvents) -> list[MergeTask]:
        """New files of about FILE_EVENTS old and new events: first the users that move, then the new ones."""
        strangers = np.flatnonzero(new.events.users >= self.manifest.num_users)
        num_old = len(new.events.items) - int(lengths_of(new.events)[strangers].sum())
        events_of_group = np.array([events for _, _, events in moves.groups], dtype=np.int64)
        share = num_old / max(int(events_of_group.sum()), 1)  # new events for each event that moves, on average
        ends = np.cumsum(events_of_group * (1 + share))
        group_file = ((ends - 1) // FILE_EVENTS).astype(np.int64)
        user_ends = (ends[-1] if len(ends) else 0) + np.cumsum(lengths_of(new.events)[strangers])
        user_file = ((user_ends - 1) // FILE_EVENTS).astype(np.int64)
        first = 1 + max(int(Path(file.path).stem.split("-")[1]) for file in self.manifest.files)
        num_users = self.manifest.num_users + len(new.users)
        return [
            MergeTask(
                source=self.target,
                target=self.finished,
                number=first + number,
                groups=tuple(moves.groups[place][:2] for place in np.flatnonzero(group_file == part)),
                compacted=moves.compacted,
                new_users=new.events.users[strangers[user_file == part]],
                split=self.config.split,
                row_group_users=min(max(num_users // 64, 64), 4096),
                ties_matter=self._ties_matter(new),
            )
            for number, part in enumerate(np.union1d(group_file, user_file))
        ]

    def _ties_matter(self, new: NewEvents) -> bool:
        """Whether an old and a new event of the same second may have an order that is not old, then new."""
        last = max(file.path for file in self.manifest.source_files)
        sorts_before = any(file.name < last for file in self.log.files)
        return sorts_before or self.manifest.has_subseconds or new.has_subseconds

    def _link_files(self, moves: _Moves) -> list[SequenceFile]:
        kept = []
        for file in self.manifest.files:
            if file.path in moves.dropped:
                continue
            _link(self.target / file.path, self.finished / file.path)
            if file.path in moves.superseded:
                np.save(superseded_path(self.finished, file.path), moves.superseded[file.path])
            elif file.num_superseded:
                _link(superseded_path(self.target, file.path), superseded_path(self.finished, file.path))
            kept.append(moves.changed.get(file.path, file))
        return kept

    def _write_items(self, new: NewEvents, results: Sequence[MergeResult]) -> tuple[pa.Table, VectorFacts | None]:
        """The item table with the new items; vectors, and cold items, come from their file as it is now."""
        old = pq.read_table(self.target / ITEMS_FILE)
        padding = np.zeros(len(new.items), dtype=np.int64)
        counts = np.concatenate([old["count"].to_numpy(), padding]) + new.item_counts[1:]
        train_counts: IntArray = np.concatenate([old["train_count"].to_numpy(), padding])
        for result in results:
            train_counts = train_counts + result.train_counts[1:]
        ids = pa.chunked_array([*old["item"].chunks, new.items])
        items, vectors = pa.table({"item": ids, "count": counts}), None
        if self.config.item_vectors is not None:
            items, vectors = join_vectors(self.config.item_vectors, items, self.finished)
            train_counts = np.concatenate([train_counts, np.zeros(len(items) - len(train_counts), dtype=np.int64)])
        table = items_table(items, train_counts, self.log.item_info)
        pq.write_table(table, self.finished / ITEMS_FILE)
        return table, vectors

    def _write_users(self, users: pa.Array) -> None:
        if not len(users):
            _link(self.target / USERS_FILE, self.finished / USERS_FILE)
            return
        with (
            pq.ParquetFile(self.target / USERS_FILE) as old,
            pq.ParquetWriter(str(self.finished / USERS_FILE), schema := users_schema(users.type)) as writer,
        ):
            for batch in old.iter_batches(1_000_000):
                writer.write_batch(batch.cast(schema))
            index = self.manifest.num_users + np.arange(len(users))
            writer.write_table(pa.Table.from_arrays([pa.array(index), users], schema=schema))

    def _link_rejected(self) -> None:
        for path in (self.target / REJECTED_DIR).glob("*.parquet"):
            _link(path, self.finished / REJECTED_DIR / path.name)
        if not any((self.finished / REJECTED_DIR).iterdir()):
            (self.finished / REJECTED_DIR).rmdir()


def _row_groups(rows: pa.Table, num_groups: int) -> tuple[RowGroup, ...]:
    """Rows and events of each row group, of rows that `locate_rows` has found."""
    groups = rows["group"].to_numpy()
    num_rows = np.bincount(groups, minlength=num_groups)
    num_events = np.bincount(groups, weights=rows["length"].to_numpy(), minlength=num_groups)
    return tuple(RowGroup(rows=int(r), events=int(e)) for r, e in zip(num_rows, num_events, strict=True))


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
