"""Skewed logs: one user with a million events, one item that is nearly everything, one user alone; and sorting."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import DataConfig
from genrec.data.prepare import prepare
from genrec.data.schema import ITEMS_FILE, USERS_FILE
from genrec.data.sequences import time_order


def prepare_columns(tmp_path: Path, columns: dict[str, npt.NDArray[np.int64]], num_shards: int) -> pa.Table:
    """The prepared sequences of a log of two files, in the order of the users' indices."""
    (tmp_path / "log").mkdir()
    table = pa.table(columns)
    half = len(table) // 2
    pq.write_table(table.slice(0, half), tmp_path / "log/0.parquet")
    pq.write_table(table.slice(half), tmp_path / "log/1.parquet")
    source = {"name": "parquet", "path": str(tmp_path / "log")}
    values = {"source": source, "prepared": str(tmp_path / "set"), "num_shards": num_shards}
    manifest = prepare(DataConfig.model_validate(values))
    assert manifest.num_events == len(table)
    return pa.concat_tables([pq.read_table(tmp_path / "set" / file.path) for file in manifest.files])


def test_a_user_with_a_million_events_and_an_item_that_is_nearly_everything(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    users = rng.permutation(np.concatenate([np.zeros(1_000_000, np.int64), np.arange(1, 200_001) % 5_000]))
    items = np.where(rng.random(len(users)) < 0.9, 7, rng.integers(0, 30_000, len(users)))
    times = rng.integers(0, 300_000, len(users))
    sequences = prepare_columns(tmp_path, {"user": users, "item": items, "time": times}, num_shards=3)
    ids = pq.read_table(tmp_path / "set" / USERS_FILE)["user"].to_numpy()
    names = pq.read_table(tmp_path / "set" / ITEMS_FILE)["item"].to_numpy()
    assert names[0] == 7
    lengths = sequences["length"].to_numpy()
    assert lengths.max() == (users == 0).sum() > 1_000_000
    order = np.lexsort((times, users))  # stable: equal times in the order of the log
    place = np.argsort(ids)  # the prepared users by rising id
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.concatenate([np.arange(starts[user], starts[user + 1]) for user in place])
    found_items = names[sequences["items"].combine_chunks().flatten().to_numpy()[rows] - 1]
    found_times = sequences["times"].combine_chunks().flatten().to_numpy()[rows]
    assert np.array_equal(np.repeat(ids[place], lengths[place]), users[order])
    assert np.array_equal(found_times, times[order]) and np.array_equal(found_items, items[order])


def test_one_user_and_one_item(tmp_path: Path) -> None:
    columns = {"user": np.full(5_000, 3), "item": np.full(5_000, 9), "time": np.arange(5_000)[::-1].copy()}
    sequences = prepare_columns(tmp_path, columns, num_shards=4)
    assert sequences["length"].to_pylist() == [5_000]
    assert sequences["times"].to_pylist() == [list(range(5_000))]


@pytest.mark.parametrize("num_rows", [1, 70_000])
@pytest.mark.parametrize("last_time", [0, 1, 10**5, 10**16])
def test_time_order_is_that_of_two_stable_sorts(num_rows: int, last_time: int) -> None:
    rng = np.random.default_rng(last_time % 97 + num_rows)
    rows = rng.integers(0, num_rows, 100_000)
    times = rng.integers(-last_time - 1, last_time + 1, 100_000)
    assert np.array_equal(time_order(rows, times), np.lexsort((times, rows)))
    assert np.array_equal(time_order(rows, np.sort(times)), np.argsort(rows, kind="stable"))
    assert np.array_equal(time_order(rows.astype(np.int32), None), np.argsort(rows, kind="stable"))
