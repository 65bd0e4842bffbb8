"""Every kind of source as one kind of log: parts to read, what their rows hold, and what is known about the items."""

import codecs
import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import (
    ColumnsConfig,
    CsvSource,
    MovieLensSource,
    ParquetSource,
    RecBoleSource,
    SequenceTextSource,
    Source,
    SyntheticSource,
)
from genrec.data.log_files import FileError, LogFile, check_columns, find_files, unreadable
from genrec.data.log_parts import LogPart
from genrec.data.manifest import RejectedFile
from genrec.data.movielens import open_release
from genrec.data.quarantine import Quarantine
from genrec.data.validate import normal_ids
from genrec.errors import DataError

PART_ROWS = 2_000_000  # of a Parquet file that one task reads
_CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_BYTES_PER_EVENT = {"pairs": 12, "lists": 5, "delimited": 24}
_GZIP_RATIO = 4

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function for every task, in any place, and hands out what it returns in the order of the tasks."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log that can be read part by part.

    `columns` are the roles that its rows have. `text_ids` says that ids were read from text, so that those that are all
    integers become integers. `item_info` has the columns item and any of type, title. `files` are those of a Parquet or
    CSV log, bad ones among them; `rejected_files` are the bad ones.
    """

    parts: tuple[LogPart, ...]
    columns: frozenset[str]
    text_ids: bool
    time_unit: str = "s"
    item_info: pa.Table | None = None
    best_known: Mapping[str, float] = field(default_factory=dict)
    files: tuple[LogFile, ...] = ()
    rejected_files: tuple[RejectedFile, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of all parts: exact for Parquet, guessed from the bytes for text."""
        return sum(part.num_rows for part in self.parts)


def open_log(
    source: Source,
    folder: Path,
    progress: Callable[[float], None] | None = None,
    *,
    max_rejected_files: int = 0,
    known: Collection[str] = (),
    part_rows: int | None = None,
    run: RunTasks = map,
) -> Log:
    """The log of any source; a synthetic one is first written to `folder`, a missing MovieLens release downloaded.

    Looks at names, headers and footers only; `run` may write the files of a synthetic log side by side. Files of a
    Parquet or CSV log whose names are `known` are left out; a part of Parquet has about `part_rows`.
    Raises DataError when a file is missing, damaged or has other columns; up to `max_rejected_files` of a Parquet or
    CSV log are put aside instead.
    """
    if isinstance(source, ParquetSource | CsvSource):
        files = tuple(file for file in list_files(source) if file.name not in known)
        info = _read_item_info(source.items_path)
        quarantine = Quarantine(max_rejected_files)
        if isinstance(source, ParquetSource):
            return _open_parquet(files, source.columns, info, quarantine, part_rows or PART_ROWS)
        return _open_csv(files, source, info, quarantine)
    if isinstance(source, RecBoleSource):
        return _open_recbole(source)
    if isinstance(source, SequenceTextSource):
        return _open_sequence_text(source)
    if isinstance(source, MovieLensSource):
        part, titles = open_release(source, progress)
        return Log((part,), frozenset(part.columns), text_ids=True, item_info=titles)
    assert isinstance(source, SyntheticSource), "a mixture is made of prepared sets, not of a log"
    return _open_synthetic(source, folder, progress, run)


def list_files(source: ParquetSource | CsvSource) -> tuple[LogFile, ...]:
    """The files of a log in their order; raises DataError when there is none."""
    return find_files(source.path, (".parquet",) if isinstance(source, ParquetSource) else _CSV_SUFFIXES)


def _mapped(columns: ColumnsConfig) -> dict[str, str]:
    roles = ("user", "item", "time", "action", "value")
    return {role: name for role in roles if (name := getattr(columns, role)) is not None}


def _open_parquet(
    files: tuple[LogFile, ...],
    columns: ColumnsConfig,
    item_info: pa.Table | None,
    quarantine: Quarantine,
    part_rows: int,
) -> Log:
    mapped = _mapped(columns)
    footers: dict[LogFile, pq.FileMetaData] = {}
    kinds: dict[LogFile, tuple[str, ...]] = {}
    for file in files:
        try:
            metadata, schema = _read_footer(file)
            check_columns(file.path, mapped, schema.names)
        except FileError as error:
            quarantine.add(file, error)
        else:
            footers[file] = metadata
            kinds[file] = tuple(_id_kind(schema.field(mapped[role]).type) for role in ("user", "item"))
    usual = Counter(kinds.values()).most_common(1)[0][0] if kinds else ()
    parts: list[LogPart] = []
    for file, metadata in footers.items():
        if kinds[file] == usual:
            parts.extend(_parquet_parts(file, metadata, mapped, part_rows))
        else:
            example = next(other for other in footers if kinds[other] == usual)
            quarantine.add(file, _other_ids(file, kinds[file], example, usual))
    return Log(
        tuple(parts),
        frozenset(mapped),
        False,
        columns.time_unit,
        item_info,
        files=files,
        rejected_files=tuple(quarantine.files.values()),
    )


def _other_ids(file: LogFile, kinds: tuple[str, ...], example: LogFile, usual: tuple[str, ...]) -> FileError:
    role, kind, other = next(
        (role, kind, other) for role, kind, other in zip(("user", "item"), kinds, usual, strict=True) if kind != other
    )
    return FileError(
        f"{file.path} has {role} ids of type {kind}, but {example.path} has {other}; write all shards with one type.",
        "type of a column",
    )


def _id_kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):  # pandas turns integers with gaps into floats
        return "integer"
    return "string" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


def _read_footer(file: LogFile) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with file.open() as stream, pq.ParquetFile(stream) as parquet:
            return parquet.metadata, parquet.schema_arrow
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise unreadable(file.path, error) from error


def _parquet_parts(file: LogFile, metadata: pq.FileMetaData, columns: dict[str, str], part_rows: int) -> list[LogPart]:
    """Neighbouring row groups, `part_rows` together."""
    parts: list[LogPart] = []
    groups: list[int] = []
    first = rows = 0
    for index in range(metadata.num_row_groups):
        groups.append(index)
        rows += metadata.row_group(index).num_rows
        if rows >= part_rows or index == metadata.num_row_groups - 1:
            parts.append(LogPart(file, "parquet", columns, rows, tuple(groups), first))
            first, rows, groups = first + rows, 0, []
    return parts


def _open_csv(files: tuple[LogFile, ...], source: CsvSource, item_info: pa.Table | None, quarantine: Quarantine) -> Log:
    mapped = _mapped(source.columns)
    parts = []
    for file in files:
        try:
            line = _first_line(file)
            if line:
                check_columns(file.path, mapped, _fields(line, source.delimiter))
        except FileError as error:
            quarantine.add(file, error)
        else:
            rows = _guess_rows(file, "delimited")
            parts.append(LogPart(file, "delimited", mapped, rows, delimiter=source.delimiter))
    return Log(
        tuple(parts),
        frozenset(mapped),
        True,
        source.columns.time_unit,
        item_info,
        files=files,
        rejected_files=tuple(quarantine.files.values()),
    )


def _open_recbole(source: RecBoleSource) -> Log:
    files = find_files(source.path, (".inter", ".inter.gz"))
    if len(files) > 1:
        raise DataError(f"{source.path} holds {len(files)} .inter files; set data.source.path to the one to read.")
    header = _first_line(files[0])
    if not header:
        raise DataError(f"{files[0].path} is empty; it must start with a header such as `user_id:token`.")
    names = tuple(name.partition(":")[0] for name in header.split("\t"))
    required = {"user": "user_id", "item": "item_id"}
    check_columns(files[0].path, required, names)
    optional = {"time": "timestamp", "value": "rating"}
    columns = required | {role: name for role, name in optional.items() if name in names}
    part = LogPart(
        files[0],
        "delimited",
        columns,
        _guess_rows(files[0], "delimited"),
        delimiter="\t",
        quoted=False,
        names=names,
        skip_lines=1,
    )
    return Log((part,), frozenset(columns), text_ids=True)


def _open_sequence_text(source: SequenceTextSource) -> Log:
    (file, *others) = find_files(source.path, (".txt", ".txt.gz"))
    if others:
        raise DataError(f"{source.path} holds {1 + len(others)} text files; set data.source.path to the one to read.")
    rows = _guess_rows(file, source.layout)
    columns = {"user": "user", "item": "item"}
    if source.layout == "lists":
        part = LogPart(file, "lists", columns, rows)
    else:
        delimiter = "\t" if "\t" in _first_line(file) else " "
        names = ("user", "item")
        part = LogPart(file, "delimited", columns, rows, delimiter=delimiter, quoted=False, names=names)
    return Log((part,), frozenset(columns), text_ids=True)


def _open_synthetic(
    source: SyntheticSource, folder: Path, progress: Callable[[float], None] | None, run: RunTasks
) -> Log:
    from genrec.data.synthetic import write_log  # only this source needs it

    num_written = 0

    def on_file(num_events: int) -> None:
        nonlocal num_written
        num_written += num_events
        if progress is not None:
            progress(min(num_written / source.num_events, 1.0))

    best_known = write_log(source, folder, on_file, run)
    columns = ColumnsConfig(action="action", value="value")
    files = find_files(str(folder / "log"), (".parquet",))
    log = _open_parquet(files, columns, _read_item_info(str(folder / "items.parquet")), Quarantine(0), PART_ROWS)
    return Log(log.parts, log.columns, False, "s", log.item_info, best_known)


def _first_line(file: LogFile) -> str:
    """The first line of a text file without its end and byte-order mark; empty for an empty file."""
    try:
        with file.open_text() as stream:
            head = stream.read(1 << 16)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(f"{file.path} is UTF-16 text; save it as UTF-8.", "not UTF-8")
    lines = head.removeprefix(codecs.BOM_UTF8).splitlines()
    return str(lines[0].decode("utf-8", errors="replace")) if lines else ""


def _fields(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # a quote that is not closed, ...
        return header.split(delimiter)


def _guess_rows(file: LogFile, layout: str) -> int:
    """Events by the size of the file: near enough to choose a number of shards."""
    return file.num_bytes * (_GZIP_RATIO if file.is_gzip else 1) // _BYTES_PER_EVENT[layout]


def _read_item_info(path: str | None) -> pa.Table | None:
    """Columns item and any of type, title of an item table in Parquet; None without a path."""
    if path is None:
        return None
    tables = []
    for file in find_files(path, (".parquet",)):
        _, schema = _read_footer(file)
        if "item" not in schema.names:
            raise DataError(
                f"{file.path} has no column 'item' (it has {', '.join(schema.names)}); rename the id column."
            )
        if _id_kind(schema.field("item").type) not in ("integer", "string"):
            raise DataError(f"{file.path} has items of type {schema.field('item').type}; use integers or strings.")
        try:
            with file.open() as stream:
                table = pq.read_table(stream, columns=[n for n in ("item", "type", "title") if n in schema.names])
            told = {name: table[name].cast(pa.string()) for name in table.column_names if name != "item"}
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from error
        try:
            ids = normal_ids(table["item"], "item").cast(pa.string())
        except FileError as error:
            raise DataError(f"{file.path}: {error}") from error
        tables.append(pa.table({"item": ids, **told}))
    return pa.concat_tables(tables, promote_options="default")
