"""The vocabulary: items of many runs added up, found again, and told apart where their hashes are equal."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from genrec.data import runs, vocabulary
from genrec.data.runs import Run, load_shard, write_run
from genrec.data.stable_hash import hash_ids
from genrec.data.vocabulary import build_vocabulary, numbered_items, order_items

Hashes = npt.NDArray[np.uint64]


def write_runs(tmp_path: Path, num_runs: int, *, integers: bool) -> tuple[list[Run], list[list[str]]]:
    """Runs of one shard and one user, and the items of each."""
    rng = np.random.default_rng(3)
    logs = [[str(7 * n) if integers else f"item-{n}" for n in rng.integers(0, 200, 150)] for _ in range(num_runs)]
    tables = [pa.table({"user": ["u"] * len(log), "item": log}) for log in logs]
    return [write_run(str(tmp_path / f"{n:03d}"), table, 1) for n, table in enumerate(tables)], logs


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("num_hashes", [2**64, 11])
def test_items_of_all_runs_are_counted_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_hashes: int, integers: bool
) -> None:
    def few_hashes(ids: pa.Array) -> Hashes:
        return np.array([value % num_hashes for value in hash_ids(ids).tolist()], dtype=np.uint64)

    monkeypatch.setattr(runs, "hash_ids", few_hashes)
    monkeypatch.setattr(vocabulary, "_MERGE_ROWS", 500)  # added up several times
    written, logs = write_runs(tmp_path, 12, integers=integers)
    built = build_vocabulary([run.file for run in written], integer_items=integers)
    names = [str(item) for item in built.items.to_pylist()]
    expected = Counter(item for log in logs for item in log)
    assert dict(zip(names, built.counts.tolist(), strict=True)) == expected
    assert built.items.type == (pa.int64() if integers else pa.large_string())
    events = load_shard([piece for run in written for piece in run.pieces], [], integer_users=False)
    assert [names[position] for position in events.items] == [item for log in logs for item in log]


def test_indices_follow_count_then_id(tmp_path: Path) -> None:
    written, logs = write_runs(tmp_path, 3, integers=False)
    built = build_vocabulary([run.file for run in written], integer_items=False)
    counts = built.counts.copy()
    counts[built.counts < 2] = 0  # dropped by a filter
    items = numbered_items(built, order_items(built.items, counts, counts > 0), counts)
    expected = Counter(item for log in logs for item in log)
    rows = sorted((-count, item) for item, count in expected.items() if count >= 2)
    assert items.to_pylist() == [{"item": item, "count": -count} for count, item in rows]
    assert items.schema.field("item").type == pa.string()
