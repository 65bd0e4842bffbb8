"""A log as parts that are read on their own, each a stream of blocks with the columns user, item, time, action, value.

Parts are numbered in the order of the log (file name, then row), and blocks come in the order of the rows, so that
events of the same moment can keep the log's order. Nothing here judges a row; that is `validate.py`. The only rows
that a part itself refuses are lines of text that are no row; they are handed to `on_malformed`.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from genrec.data.log_files import LogFile, unreadable
from genrec.data.utf8_stream import BROKEN, Utf8Stream

PARQUET_BLOCK_ROWS = 1_000_000
TEXT_BLOCK_BYTES = 16 * 2**20
NULL_WORDS = ("", "null", "NULL", "NaN", "nan", "\\N")
_UNUSED_CHARACTER = "\x01"  # a field separator that no text file holds: the whole line becomes one field

Malformed = Callable[[str, Sequence[str]], None]
"""Called with (reason, texts) for lines that are no rows; a text has line breaks where a quote swallowed them."""

MALFORMED_REASONS = ("wrong number of fields", "not UTF-8", "line break in a field", "user without items")


@dataclass(frozen=True, slots=True)
class LogPart:
    """What one task reads: some row groups of a Parquet file, or a whole text file.

    `columns` maps user, item, time, action and value to the file's names. `names` names the fields of a text file that
    has no header of its own; `skip_lines` then skips one that cannot be used. `member` is the file inside a zip.
    """

    file: LogFile
    kind: Literal["parquet", "delimited", "lists"]
    columns: dict[str, str] = field(default_factory=dict)
    num_rows: int = 0
    row_groups: tuple[int, ...] = ()
    first_row: int = 0
    delimiter: str = ","
    quoted: bool = True
    names: tuple[str, ...] = ()
    skip_lines: int = 0
    member: str | None = None

    @property
    def label(self) -> str:
        """How messages name the file."""
        return f"{self.file.path}:{self.member}" if self.member else self.file.path


def read_part(part: LogPart, on_malformed: Malformed) -> Iterator[pa.Table]:
    """Blocks of the part, columns named by their role; raises FileError when the file is damaged."""
    try:
        if part.kind == "parquet":
            yield from _read_parquet(part)
        elif part.kind == "lists":
            yield from _read_lists(part, on_malformed)
        else:
            for block in _read_delimited(part, part.columns, on_malformed):
                yield block.rename_columns(list(part.columns))
    except (OSError, EOFError, pa.ArrowException, UnicodeError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(part.label, error) from error


def _read_parquet(part: LogPart) -> Iterator[pa.Table]:
    with part.file.open() as stream, pq.ParquetFile(stream) as parquet:
        blocks = parquet.iter_batches(
            PARQUET_BLOCK_ROWS, row_groups=list(part.row_groups), columns=sorted(set(part.columns.values()))
        )
        for block in blocks:
            table = pa.Table.from_batches([block])
            yield pa.table({role: table[name] for role, name in part.columns.items()})


def _read_delimited(part: LogPart, columns: dict[str, str], on_malformed: Malformed) -> Iterator[pa.Table]:
    """Blocks whose columns are text, in the order of `columns`; an empty file has none."""

    def refuse(row: pacsv.InvalidRow) -> str:
        on_malformed("not UTF-8" if BROKEN in row.text else "wrong number of fields", [row.text])
        return "skip"

    names = list(columns.values())
    with ExitStack() as stack:
        if part.member is not None:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(part.file.open())))
            stream = stack.enter_context(pa.PythonFile(stack.enter_context(archive.open(part.member))))
        else:
            stream = stack.enter_context(part.file.open_text())
        text = Utf8Stream(stream)
        try:
            reader = pacsv.open_csv(
                pa.PythonFile(text, mode="r"),
                pacsv.ReadOptions(
                    use_threads=False,
                    block_size=TEXT_BLOCK_BYTES,
                    column_names=list(part.names) or None,
                    skip_rows=part.skip_lines,
                ),
                pacsv.ParseOptions(
                    delimiter=part.delimiter,
                    quote_char='"' if part.quoted else False,
                    invalid_row_handler=refuse,
                ),
                pacsv.ConvertOptions(
                    include_columns=names,
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=True,
                    null_values=list(NULL_WORDS),
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return
            raise
        for block in stack.enter_context(reader):
            table = pa.Table.from_batches([block]).select(names)
            if text.found_broken:
                table = _refuse_lines(table, BROKEN, "not UTF-8", part.delimiter, on_malformed)
            if part.quoted:
                table = _refuse_lines(table, "\n", "line break in a field", part.delimiter, on_malformed)
            yield table


def _refuse_lines(table: pa.Table, mark: str, reason: str, delimiter: str, on_malformed: Malformed) -> pa.Table:
    """The rows without `mark` in any column; the others are handed on as lines."""
    marked = np.zeros(len(table), dtype=np.bool_)
    for column in table.columns:
        if not any(_holds_byte(chunk, mark.encode()[-1]) for chunk in column.chunks):
            continue  # nearly always, and several times as fast as looking at every text
        marked |= pc.match_substring(column, mark).fill_null(False).to_numpy()
    if not marked.any():
        return table
    lines = table.filter(pa.array(marked))
    joined = pc.binary_join_element_wise(*(column.fill_null("") for column in lines.columns), delimiter)
    on_malformed(reason, joined.to_pylist())
    return table.filter(pa.array(~marked))


def _holds_byte(texts: pa.StringArray, byte: int) -> bool:
    data = texts.buffers()[2]
    return data is not None and bool((np.frombuffer(data, np.uint8) == byte).any())


def _read_lists(part: LogPart, on_malformed: Malformed) -> Iterator[pa.Table]:
    """`user item item ...` a line: one event for each item."""
    lines = LogPart(
        part.file, "delimited", {"line": "line"}, delimiter=_UNUSED_CHARACTER, quoted=False, names=("line",)
    )
    for block in _read_delimited(lines, lines.columns, on_malformed):
        line = pc.utf8_trim_whitespace(block["line"].combine_chunks().drop_null())
        words = pc.utf8_split_whitespace(line)
        offsets, flat = words.offsets.to_numpy(), words.flatten()
        num_items = np.diff(offsets) - 1
        if (num_items < 1).any():
            on_malformed("user without items", line.filter(pa.array(num_items < 1)).to_pylist())
        is_item = np.ones(len(flat), dtype=np.bool_)
        is_item[offsets[:-1]] = False
        users = flat.take(pa.array(np.repeat(offsets[:-1], np.maximum(num_items, 0))))
        yield pa.table({"user": users, "item": flat.filter(pa.array(is_item))})
