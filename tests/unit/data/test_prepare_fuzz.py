"""Hundreds of malformed files and rows: one sentence or exact counts, never a crash and never a row lost in silence."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from malformed_logs import (
    KINDS,
    ODD_COLUMNS,
    Case,
    good_lines,
    good_table,
    long_history,
    odd_column,
    parquet,
    text,
    write,
)
from prepared_content import read_content
from pydantic import TypeAdapter

from genrec.config import DataConfig, Source
from genrec.data.log_files import FileError
from genrec.data.prepare import prepare
from genrec.data.quarantine import BadPart, scatter_or_reject
from genrec.data.rejected import MAX_LINE_CHARACTERS, REJECTED_SCHEMA
from genrec.data.scatter import ScatterResult, ScatterTask
from genrec.data.sources import open_log
from genrec.errors import DataError

SEEDS = 10


def source_of(path: Path, case: Case) -> dict[str, Any]:
    name = "parquet" if case.name.endswith(".parquet") else "csv"
    columns = {"action": "action", "value": "value"} if len(case.data) and b"action" in case.data else {}
    return {"name": name, "path": str(path), "columns": columns}


def read(case: Case, tmp_path: Path) -> list[ScatterResult]:
    """What the first pass makes of the file; raises FileError when it refuses it."""
    path = write(case, tmp_path / "log")
    log = open_log(TypeAdapter(Source).validate_python(source_of(path, case)), tmp_path / "work")
    (tmp_path / "events").mkdir()
    results = []
    for index, part in enumerate(log.parts):
        task = ScatterTask(index, part, 3, "s", None, tmp_path / "events", tmp_path / "rejected")
        outcome = scatter_or_reject(task)
        if isinstance(outcome, BadPart):
            raise outcome.error
        results.append(outcome)
    return results


def check(case: Case, tmp_path: Path) -> None:
    try:
        results = read(case, tmp_path)
    except FileError as error:
        message = str(error)
        assert case.refused or case.num_rows is None, message
        assert case.name in message and message.endswith((".", "?")) and error.reason
        assert "Traceback" not in message and len(message) < 600
        return
    assert not case.refused
    num_rows = sum(result.num_rows for result in results)
    num_events = sum(piece.num_events for result in results for piece in result.pieces)
    num_rejected = sum(sum(result.rejected.values()) for result in results)
    assert num_rows == num_events + num_rejected
    assert case.num_rows in (None, num_rows) and case.num_events in (None, num_events)
    kept = [pq.read_table(path) for path in sorted((tmp_path / "rejected").glob("*"))]
    rows = pa.concat_tables([REJECTED_SCHEMA.empty_table(), *kept]).to_pylist()
    assert len(rows) == num_rejected
    assert all(row["file"].endswith(case.name) and row["reason"] for row in rows)
    assert all((row["row"] is None) != (row["line"] is None) for row in rows)
    assert all(len(row["line"]) <= MAX_LINE_CHARACTERS for row in rows if row["line"] is not None)
    for result in results:
        assert result.rejected.keys() == result.examples.keys()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_file(tmp_path: Path, kind: str, seed: int) -> None:
    check(KINDS[kind](random.Random(f"{kind} {seed}")), tmp_path)


@pytest.mark.parametrize("index", range(len(ODD_COLUMNS)))
def test_odd_column(tmp_path: Path, index: int) -> None:
    check(odd_column(index), tmp_path)


def test_there_are_enough() -> None:
    assert len(KINDS) * SEEDS + len(ODD_COLUMNS) >= 200


def test_a_million_events_of_one_user(tmp_path: Path) -> None:
    check(Case("log.parquet", long_history(1_000_000), 1_000_000, 1_000_000), tmp_path)


def test_bad_files_are_put_aside_whole(tmp_path: Path) -> None:
    """Good shards, empty shards and bad ones of every kind through `prepare`: exactly the good ones are in the set."""
    rng = random.Random(3)
    log = tmp_path / "log"
    log.mkdir()
    tables = [good_table(rng, 200) for _ in range(3)]
    for number, table in enumerate(tables):
        (log / f"good-{number}.parquet").write_bytes(parquet(table, row_group_size=50))
    (log / "empty.parquet").write_bytes(parquet(tables[0].slice(0, 0)))
    whole = bytearray(
        parquet(good_table(rng, 200_000), row_group_size=50_000, compression="none", use_dictionary=False)
    )
    (log / "zero.parquet").write_bytes(b"")
    (log / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (log / "column.parquet").write_bytes(parquet(tables[0].rename_columns(["user", "thing", "time"])))
    (log / "kind.parquet").write_bytes(parquet(tables[0].set_column(0, "user", tables[0]["item"])))
    (log / "time.parquet").write_bytes(parquet(tables[0].set_column(2, "time", pa.array([True] * 200))))
    start = pq.ParquetFile(pa.BufferReader(bytes(whole))).metadata.row_group(3).column(1).data_page_offset
    whole[start : start + 200] = bytes(200)  # found only after three row groups have been read
    (log / "middle.parquet").write_bytes(whole)
    config = DataConfig.model_validate(
        {
            "source": {"name": "parquet", "path": str(log)},
            "prepared": str(tmp_path / "set"),
            "max_rejected_files": 6,
            "num_shards": 2,
        }
    )
    manifest = prepare(config)
    content = read_content(tmp_path / "set")
    assert manifest.num_events == manifest.num_rows == 600
    assert set(content["sequences"]) == {user for table in tables for user in table["user"].to_pylist()}
    assert content["rejected_files"] == {
        ("zero.parquet", "unreadable"),
        ("cut.parquet", "unreadable"),
        ("middle.parquet", "unreadable"),
        ("column.parquet", "missing column"),
        ("kind.parquet", "type of a column"),
        ("time.parquet", "type of a column"),
    }
    few = config.model_copy(update={"max_rejected_files": 5, "prepared": str(tmp_path / "few")})
    with pytest.raises(
        DataError, match=r"(?s)More than data.max_rejected_files = 5 files are bad.*zero.parquet cannot"
    ):
        prepare(few)
    assert not (tmp_path / "few").exists()


def test_counts_of_a_whole_preparation_add_up(tmp_path: Path) -> None:
    rng = random.Random(4)
    kinds = ("nulls", "times", "fields", "other encoding", "quotes", "odd ids", "endings", "duplicates")
    cases = [KINDS[kind](rng) for kind in kinds]
    for number, case in enumerate(cases):
        write(case, tmp_path / "log" / str(number))
    late = [f"u1,i1,{10**9 + 5}," for _ in range(7)]
    write(Case("log.csv", text([*good_lines(rng), *late])), tmp_path / "log/late")
    manifest = prepare(
        DataConfig.model_validate(
            {
                "source": {"name": "csv", "path": str(tmp_path / "log")},
                "prepared": str(tmp_path / "set"),
                "max_rejected_fraction": 0.5,
                "max_time": 10**9,
                "min_user_events": 2,
            }
        )
    )
    read_content(tmp_path / "set")
    assert manifest.rejected["time after max_time"] == 7
    assert sum(manifest.rejected.values()) - 7 == sum((c.num_rows or 0) - (c.num_events or 0) for c in cases)
    assert manifest.filtered["min_user_events"] > 0 and np.diff(manifest.time_range) > 0
