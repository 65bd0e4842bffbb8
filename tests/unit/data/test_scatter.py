"""The first pass: events of a shard come back in the order of the log, and bad rows with the place they stood at."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import ParquetSource
from genrec.data import sources
from genrec.data.runs import load_shard
from genrec.data.scatter import ScatterResult, ScatterTask, scatter
from genrec.data.sources import open_log
from genrec.data.stable_hash import hash_ids
from genrec.data.vocabulary import build_vocabulary


def scatter_all(
    tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, num_shards: int
) -> list[ScatterResult]:
    """Three blocks of two rows a part, parts of six rows; a run of four rows, then one of two."""
    monkeypatch.setattr(sources, "PART_ROWS", 6)
    monkeypatch.setattr("genrec.data.log_parts.PARQUET_BLOCK_ROWS", 2)
    monkeypatch.setattr("genrec.data.scatter.RUN_EVENTS", 4)
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=3)
    log = open_log(ParquetSource(name="parquet", path=str(tmp_path / "log.parquet")), tmp_path)
    assert len(log.parts) == -(-len(table) // 6)
    rejected = tmp_path / "rejected"
    return [
        scatter(ScatterTask(index, part, num_shards, "s", None, tmp_path, rejected))
        for index, part in enumerate(log.parts)
    ]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_shards_keep_the_order_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int) -> None:
    users = [f"u{n * n % 7}" for n in range(40)]
    table = pa.table({"user": users, "item": list(range(40)), "time": [n % 4 for n in range(40)]})
    results = scatter_all(tmp_path, table, monkeypatch, num_shards)
    assert sum(result.num_rows for result in results) == 40
    shard_of = dict(zip(users, hash_ids(pa.array(users)) % num_shards, strict=True))
    assert len(set(shard_of.values())) == num_shards
    vocabulary = build_vocabulary([run for result in results for run in result.runs], integer_items=False)
    for shard in range(num_shards):
        pieces = [piece for result in results for piece in result.pieces if piece.shard == shard]
        events = load_shard(pieces, ["time"], integer_users=False)
        assert events.times is not None and events.actions is None
        found = [
            (events.user_ids[user].as_py(), vocabulary.items[item].as_py(), int(time) // 1_000_000)
            for user, item, time in zip(events.users, events.items, events.times, strict=True)
        ]
        ids = events.user_ids.to_pylist()
        assert ids == sorted(set(ids), key=lambda user: hash_ids(pa.array([user]))[0])
        assert found == [(user, n, n % 4) for n, user in enumerate(users) if shard_of[user] == shard]
        assert sum(piece.num_events for piece in pieces) == len(found)


def test_bad_rows_know_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [None if n in (0, 5, 7, 14) else n for n in range(16)]
    table = pa.table({"user": ["u"] * 16, "item": pa.array(items, pa.int64()), "time": list(range(16))})
    results = scatter_all(tmp_path, table, monkeypatch, 1)
    rows = pq.read_table(tmp_path / "rejected").to_pylist()
    assert [(row["row"], row["time"]) for row in rows] == [(0, "0"), (5, "5"), (7, "7"), (14, "14")]
    assert [result.rejected for result in results] == [{"null item": 2}, {"null item": 1}, {"null item": 1}]
    assert results[1].examples["null item"].startswith("row 7 of ")


@pytest.mark.parametrize(
    ("ids", "is_integer"),
    [(["7", "-12", "0"], True), (["7", "007"], False), (["7", "a"], False), ([str(2**63)], False)],
)
def test_which_text_is_an_integer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str], is_integer: bool
) -> None:
    table = pa.table({"user": ids, "item": ["1"] * len(ids), "time": [1] * len(ids)})
    (result,) = scatter_all(tmp_path, table, monkeypatch, 2)
    assert (result.integer_users, result.integer_items) == (is_integer, True)
