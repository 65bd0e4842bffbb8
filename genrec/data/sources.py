"""Every kind of source as one kind of log: parts to read, what their rows hold, and what is known about the items."""

import codecs
import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
from genrec.data.log_files import LogFile, check_columns, find_files, unreadable
from genrec.data.log_parts import LogPart
from genrec.data.movielens import open_release
from genrec.errors import DataError

PART_ROWS = 2_000_000  # of a Parquet file that one task reads
_CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_BYTES_PER_EVENT = {"pairs": 12, "lists": 5, "delimited": 24}
_GZIP_RATIO = 4


@dataclass(frozen=True, slots=True)
class Log:
    """A log that can be read part by part.

    `columns` are the roles that its rows have. `text_ids` says that ids were read from text, so that those that are all
    integers become integers. `item_info` has the columns item and any of type, title.
    """

    parts: tuple[LogPart, ...]
    columns: frozenset[str]
    text_ids: bool
    time_unit: str = "s"
    item_info: pa.Table | None = None
    best_known: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all parts: exact for Parquet, guessed from the bytes for text."""
        return sum(part.num_rows for part in self.parts)


def open_log(source: Source, folder: Path, progress: Callable[[float], None] | None = None) -> Log:
    """The log of any source; a synthetic one is first written to `folder`, a missing MovieLens release downloaded.

    Looks at names, headers and footers only. Raises DataError when a file is missing, damaged or has other columns.
    """
    if isinstance(source, ParquetSource):
        return _open_parquet(source.path, source.columns, _read_item_info(source.items_path))
    if isinstance(source, CsvSource):
        return _open_csv(source)
    if isinstance(source, RecBoleSource):
        return _open_recbole(source)
    if isinstance(source, SequenceTextSource):
        return _open_sequence_text(source)
    if isinstance(source, MovieLensSource):
        part, titles = open_release(source, progress)
        return Log((part,), frozenset(part.columns), text_ids=True, item_info=titles)
    return _open_synthetic(source, folder, progress)


def _mapped(columns: ColumnsConfig) -> dict[str, str]:
    roles = ("user", "item", "time", "action", "value")
    return {role: name for role in roles if (name := getattr(columns, role)) is not None}


def _open_parquet(path: str, columns: ColumnsConfig, item_info: pa.Table | None) -> Log:
    mapped = _mapped(columns)
    parts: list[LogPart] = []
    types: dict[str, tuple[str, str]] = {}
    for file in find_files(path, (".parquet",)):
        metadata, schema = _read_footer(file)
        check_columns(file.path, mapped, schema.names)
        for role in ("user", "item"):
            kind = _id_kind(schema.field(mapped[role]).type)
            first_file, first_kind = types.setdefault(role, (file.path, kind))
            if kind != first_kind:
                raise DataError(
                    f"{file.path} has {role} ids of type {kind}, but {first_file} has {first_kind}; "
                    "write all shards with one type."
                )
        parts.extend(_parquet_parts(file, metadata, mapped))
    return Log(tuple(parts), frozenset(mapped), False, columns.time_unit, item_info)


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
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file.path, error) from error


def _parquet_parts(file: LogFile, metadata: pq.FileMetaData, columns: dict[str, str]) -> list[LogPart]:
    """Neighbouring row groups, PART_ROWS together."""
    parts: list[LogPart] = []
    groups: list[int] = []
    first = rows = 0
    for index in range(metadata.num_row_groups):
        groups.append(index)
        rows += metadata.row_group(index).num_rows
        if rows >= PART_ROWS or index == metadata.num_row_groups - 1:
            parts.append(LogPart(file, "parquet", columns, rows, tuple(groups), first))
            first, rows, groups = first + rows, 0, []
    return parts


def _open_csv(source: CsvSource) -> Log:
    mapped = _mapped(source.columns)
    parts = []
    for file in find_files(source.path, _CSV_SUFFIXES):
        line = _first_line(file)
        if line:
            check_columns(file.path, mapped, next(csv.reader([line], delimiter=source.delimiter), []))
        parts.append(LogPart(file, "delimited", mapped, _guess_rows(file, "delimited"), delimiter=source.delimiter))
    info = _read_item_info(source.items_path)
    return Log(tuple(parts), frozenset(mapped), True, source.columns.time_unit, info)


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


def _open_synthetic(source: SyntheticSource, folder: Path, progress: Callable[[float], None] | None) -> Log:
    from genrec.data.synthetic import write_log  # only this source needs it

    num_written = 0

    def on_block(num_events: int) -> None:
        nonlocal num_written
        num_written += num_events
        if progress is not None:
            progress(min(num_written / source.num_events, 1.0))

    best_known = write_log(source, folder, on_block)
    columns = ColumnsConfig(action="action", value="value")
    log = _open_parquet(str(folder / "log"), columns, _read_item_info(str(folder / "items.parquet")))
    return Log(log.parts, log.columns, False, "s", log.item_info, best_known)


def _first_line(file: LogFile) -> str:
    """The first line of a text file without its end and byte-order mark; empty for an empty file."""
    try:
        with file.open_text() as stream:
            head = stream.read(1 << 16)
    except OSError as error:
        raise unreadable(file.path, error) from error
    line = head.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0]
    return str(line.decode("utf-8", errors="replace").rstrip("\r"))


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
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(file.path, error) from error
        tables.append(pa.table({name: table[name].cast(pa.string()) for name in table.column_names}))
    return pa.concat_tables(tables, promote_options="default")
