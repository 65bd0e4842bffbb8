"""Bad rows and lines of a log, one Parquet file a part: `rejected/` of a prepared set (contract 2)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("user", pa.string()),
        pa.field("item", pa.string()),
        pa.field("time", pa.string()),
        pa.field("value", pa.string()),
        pa.field("line", pa.string()),
    ]
)
"""`row` counts the file's well-formed rows from 0. A line of text that is no row has its text in `line` instead."""

MAX_LINE_CHARACTERS = 200
_BUFFERED_LINES = 10_000


class RejectedWriter:
    """Counts bad rows and lines by reason and writes them to one file, which exists only when there are any.

    `counts` are rows by reason, `examples` the first of each as text.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.num_lines = 0
        self._path = path
        self._label = label
        self._lines: list[tuple[str, str]] = []
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "RejectedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._write_lines()
        if self._file is not None:
            self._file.close()

    def write(self, rows: pa.Table) -> None:
        """Adds bad rows of `REJECTED_SCHEMA`."""
        if not len(rows):
            return
        for entry in pc.value_counts(rows["reason"].combine_chunks()).to_pylist():
            reason = entry["values"]
            self.counts[reason] += entry["counts"]
            if reason not in self.examples:
                self.examples[reason] = _describe(rows.filter(pc.field("reason") == reason).slice(0, 1).to_pylist()[0])
        self._append(rows)

    def write_lines(self, reason: str, texts: Sequence[str]) -> None:
        """Adds lines that are no rows. A text of several lines is a quoted field that was not closed in time."""
        for text in texts:
            for line in text.split("\n"):
                self._lines.append((reason, line[:MAX_LINE_CHARACTERS]))
                self.counts[reason] += 1
                self.num_lines += 1
            self.examples.setdefault(reason, f"in {self._label}: {text.partition(chr(10))[0][:60]!r}")
        if len(self._lines) >= _BUFFERED_LINES:
            self._write_lines()

    def _write_lines(self) -> None:
        if not self._lines:
            return
        reasons, lines = zip(*self._lines, strict=True)
        missing = dict.fromkeys(REJECTED_SCHEMA.names, pa.nulls(len(lines), pa.string()))
        label = pa.array([self._label]).take(pa.array(np.zeros(len(lines), np.int64)))
        columns = missing | {
            "reason": pa.array(reasons, pa.string()),
            "file": label,
            "row": pa.nulls(len(lines), pa.int64()),
            "line": pa.array(lines, pa.string()),
        }
        self._append(pa.table(columns, schema=REJECTED_SCHEMA))
        self._lines = []

    def _append(self, rows: pa.Table) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(str(self._path), REJECTED_SCHEMA)
        self._file.write_table(rows)


def _describe(row: dict[str, str | int | None]) -> str:
    shown = ", ".join(f"{role}={row[role]!r}" for role in ("user", "item", "time", "value") if row[role])
    return f"row {row['row']} of {row['file']}: {shown or 'nothing'}"
