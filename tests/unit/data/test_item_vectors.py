"""Item vectors: each item gets its own, cold items come last, an append keeps up, and bad files are one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_content import read_content

from genrec.config import DataConfig
from genrec.data.append import append
from genrec.data.item_vectors import BATCH_ROWS, join_vectors
from genrec.data.manifest import VectorFacts, file_digest, load_manifest
from genrec.data.prepare import ensure_prepared, prepare
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE
from genrec.errors import DataError

DIM = 3


def write_log(tmp_path: Path, items: list[Any], name: str = "day-0") -> None:
    """Item n of the list is played by n users in one go: item counts fall."""
    rows = [
        {"user": f"u{user}", "item": item, "time": 10 * place + user}
        for place, item in enumerate(items)
        for user in range(len(items) + 3 - place)
    ]
    (tmp_path / "log").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"log/{name}.parquet")


def write_vectors(tmp_path: Path, vectors: dict[Any, Any], kind: pa.DataType | None = None) -> None:
    columns = {
        "track": pa.array(list(vectors)),
        "audio": pa.array(list(vectors.values()), kind or pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")


def data_config(tmp_path: Path, *, split: dict[str, Any] | None = None, **settings: Any) -> DataConfig:
    vectors = {"path": str(tmp_path / "vectors.parquet"), "item": "track", "vector": "audio"} | settings
    return DataConfig.model_validate(
        {
            "source": {"name": "parquet", "path": str(tmp_path / "log")},
            "prepared": str(tmp_path / "set"),
            "split": split or {"name": "leave-one-out"},
            "item_vectors": vectors,
        }
    )


def vectors_by_id(folder: Path, ids: list[Any]) -> dict[Any, list[float]]:
    """The stored vector of each item by its original id; padding is checked to have none."""
    table = np.load(folder / ITEM_VECTORS_FILE)
    assert table.dtype == np.float32 and not table[0].any()
    return dict(zip(ids, table[1:].tolist(), strict=True))


def stored(tmp_path: Path) -> dict[Any, list[float]]:
    return vectors_by_id(tmp_path / "set", pq.read_table(tmp_path / "set" / ITEMS_FILE)["item"].to_pylist())


def join(tmp_path: Path, ids: list[Any], **settings: Any) -> tuple[dict[Any, list[float]], VectorFacts]:
    """`join_vectors` alone, for a log with these items."""
    config = data_config(tmp_path, **settings).item_vectors
    assert config is not None
    items, facts = join_vectors(config, pa.table({"item": ids, "count": [1] * len(ids)}), tmp_path)
    return vectors_by_id(tmp_path, items["item"].to_pylist()), facts


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float16(), DIM), pa.large_list(pa.float32())])
@pytest.mark.parametrize("ids", ["ABCD", [7, 5, 3, 11]])
def test_each_item_gets_its_own_vector(tmp_path: Path, kind: pa.DataType, ids: Any) -> None:
    first, second, third, stranger = ids
    write_vectors(tmp_path, {stranger: [9, 9, 9], third: [0, 0, 2], first: [3, 4, 0], second: None}, kind)
    found, facts = join(tmp_path, [first, second, third])
    assert found == {first: pytest.approx([0.6, 0.8, 0]), second: [0, 0, 0], third: [0, 0, 1]}
    assert (facts.dim, facts.num_items, facts.num_cold_items) == (DIM, 2, 0)
    assert facts.sha256 == file_digest(tmp_path / ITEM_VECTORS_FILE)


def test_vectors_may_keep_their_length(tmp_path: Path) -> None:
    write_vectors(tmp_path, {"b": [3.0, 4.0], "a": [0.0, 0.0]})
    found, facts = join(tmp_path, ["a", "b"], normalize=False)
    assert found == {"a": [0, 0], "b": [3, 4]} and facts.num_items == 1  # zeros say nothing


def test_files_of_many_batches(tmp_path: Path) -> None:
    """Rows are found again by their place over files and batches, whatever their order."""
    num_items = BATCH_ROWS + 700
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(num_items, 2)).astype(np.float32)
    order = rng.permutation(num_items)
    (tmp_path / "vectors.parquet").mkdir()
    for number, part in enumerate((order[:300], order[300:])):
        table = pa.table({"track": part, "audio": pa.array(vectors[part].tolist(), pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / f"vectors.parquet/{number}.parquet", row_group_size=1_000)
    found, facts = join(tmp_path, list(range(num_items)), normalize=False)
    np.testing.assert_array_equal([found[n] for n in range(num_items)], vectors)
    assert facts.num_items == num_items


def test_cold_items_come_last_and_only_when_asked(tmp_path: Path) -> None:
    write_log(tmp_path, ["m", "k"])
    write_vectors(tmp_path, {"z": [1, 0], "k": [0, 1], "a": [0, 2], "m": [3, 0]})
    without = prepare(data_config(tmp_path))
    assert (without.num_items, without.num_train_items) == (2, 0)
    assert stored(tmp_path) == {"m": [1, 0], "k": [0, 1]}
    manifest = prepare(data_config(tmp_path, cold_items=True), overwrite=True)
    items = pq.read_table(tmp_path / "set" / ITEMS_FILE).to_pydict()
    assert items["item"] == ["m", "k", "a", "z"]
    assert items["count"][2:] == items["train_count"][2:] == [0, 0]
    assert (manifest.num_items, manifest.num_train_items) == (4, 2)  # no loss compares with them
    assert stored(tmp_path) == {"m": [1, 0], "k": [0, 1], "a": [0, 1], "z": [1, 0]}
    assert without.content_hash != manifest.content_hash
    read_content(tmp_path / "set")  # the content hash counts the vectors, too


def test_cold_items_by_time(tmp_path: Path) -> None:
    write_log(tmp_path, ["a", "b", "c"])  # c is played from second 20 on
    write_vectors(tmp_path, {"d": [1.0], "a": [1.0]})
    split = {"name": "global-time", "validation_from": 20, "test_from": 21}
    manifest = prepare(data_config(tmp_path, split=split, cold_items=True))
    assert (manifest.num_items, manifest.num_train_items) == (4, 2)


def test_append_keeps_up(tmp_path: Path) -> None:
    write_log(tmp_path, ["a", "b"])
    write_vectors(tmp_path, {"b": [1, 0], "c": [0, 1], "d": [1, 0]})
    config = data_config(tmp_path, cold_items=True)
    prepare(config)
    rows = [{"user": "new", "item": item, "time": 100 + n} for n, item in enumerate("cex")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log/day-1.parquet")
    write_vectors(tmp_path, {"b": [1, 0], "c": [0, 1], "d": [1, 0], "e": [0, 1], "f": [1, 0]})
    manifest = append(config).manifest
    items = pq.read_table(tmp_path / "set" / ITEMS_FILE).to_pydict()
    assert items["item"] == ["a", "b", "c", "d", "e", "x", "f"]  # c was cold, has events, and keeps its number
    assert items["count"][2:] == [1, 0, 1, 1, 0]
    facts = manifest.item_vectors
    assert facts is not None and (facts.num_items, facts.num_cold_items) == (5, 2)
    assert (manifest.num_items, manifest.num_train_items) == (7, 6)
    assert stored(tmp_path)["e"] == [0, 1] and stored(tmp_path)["x"] == [0, 0]
    content = read_content(tmp_path / "set")
    prepare(config.model_copy(update={"prepared": str(tmp_path / "at-once")}))
    assert content == read_content(tmp_path / "at-once")
    # A new file without events changes nothing and keeps the vectors.
    pq.write_table(pa.Table.from_pylist(rows).slice(0, 0), tmp_path / "log/day-2.parquet")
    assert append(config).manifest.item_vectors == facts
    assert stored(tmp_path)["e"] == [0, 1]


def test_other_vectors_are_another_set(tmp_path: Path) -> None:
    write_log(tmp_path, ["a", "b"])
    write_vectors(tmp_path, {"b": [1, 0]})
    prepare(data_config(tmp_path))
    with pytest.raises(DataError, match=r"data.item_vectors.normalize was True and is False"):
        ensure_prepared(data_config(tmp_path, normalize=False))
    path = tmp_path / "set" / ITEM_VECTORS_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"item_vectors.npy is \d+ and should be \d+ bytes"):
        load_manifest(tmp_path / "set")


GOOD = {"a": [1.0, 0.0], "b": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("vectors", "settings", "message"),
    [
        (GOOD, {"path": "/nowhere/vectors.parquet"}, r"/nowhere/vectors.parquet does not exist"),
        (GOOD, {"item": "song"}, r"must have one column 'song' \(it has track, audio\); set data.item_vectors.item to"),
        (GOOD, {"vector": "text"}, r"must have one column 'text' .*; set data.item_vectors.vector to the right one"),
        (GOOD, {"vector": "track"}, r"has vectors of type string; use lists of floats"),
        ({"a": [1.0, 0.0], "b": [1.0]}, {}, r"with 1 numbers, and others have 2 \(item 'b'\); mend or drop the row"),
        ({"a": [1.0, float("nan")]}, {}, r"a vector with a value of no number \(item 'a'\)"),
        ({"b": [1.0, 0.0], "a": [1.0, None]}, {}, r"a vector with a value of no number \(item 'a'\)"),
        ({"a": [1e39, 0.0]}, {}, r"a vector with a value of no number \(item 'a'\)"),
        ({"a": None}, {}, r"holds no vector in column 'audio'; give each item a list of numbers"),
        ({"x": [1.0]}, {}, r"has 1 items and none of them is in the log \(ids there are like 'a', here like 'x'\)"),
        ({"a": [1.0], None: [1.0]}, {}, r"has rows without an id in column 'track'; drop them"),
    ],
)
def test_refused(tmp_path: Path, vectors: dict[Any, Any], settings: dict[str, Any], message: str) -> None:
    write_vectors(tmp_path, vectors, pa.list_(pa.float64()))
    with pytest.raises(DataError, match=message):
        join(tmp_path, ["a", "b"], **settings)


def test_a_bad_file_is_refused_before_the_log_is_read(tmp_path: Path) -> None:
    write_log(tmp_path, ["a", "b"])
    write_vectors(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"must have one column 'text'"):
        prepare(data_config(tmp_path, vector="text"), progress=refuse_tasks)
    assert not (tmp_path / "set").exists()


def refuse_tasks(phase: str, _done: float, _total: float) -> None:
    assert phase == "open", f"the log is in phase {phase}"


@pytest.mark.parametrize("cold_items", [False, True])
def test_two_vectors_of_one_item_are_refused(tmp_path: Path, cold_items: bool) -> None:
    twice = "x" if cold_items else "a"
    columns = {"track": ["b", twice, twice], "audio": [[1.0], [2.0], [3.0]]}
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    with pytest.raises(DataError, match=rf"has 2 rows for item '{twice}'; keep one row for each item"):
        join(tmp_path, ["a", "b"], cold_items=cold_items)


@pytest.mark.parametrize("odd", ["cat", "007", ""])
def test_cold_ids_that_the_log_could_not_have_are_refused(tmp_path: Path, odd: str) -> None:
    write_vectors(tmp_path, {"7": [1.0], odd: [2.0]})
    with pytest.raises(DataError, match=rf"int64 item ids, and .* has cold items with others, '{odd}' for one"):
        join(tmp_path, [7, 5], cold_items=True)
    found, _ = join(tmp_path, [7, 5])  # without cold items, rows of unknown ids are passed over
    assert found == {7: [1], 5: [0]}


def test_files_of_two_lengths_and_of_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vectors.parquet").mkdir()
    for number, vector in enumerate(([1.0], [1.0, 2.0])):
        pq.write_table(
            pa.table({"track": ["ab"[number]], "audio": [vector]}), tmp_path / f"vectors.parquet/{number}.parquet"
        )
    with pytest.raises(DataError, match=r"0.parquet has vectors of 1 numbers and .*1.parquet of 2; all must be of one"):
        join(tmp_path, ["a", "b"])
    (tmp_path / "vectors.csv").write_text("track,audio\na,1\n")
    with pytest.raises(DataError, match=r"vectors.csv cannot be read"):
        join(tmp_path, ["a", "b"], path=str(tmp_path / "vectors.csv"))


def test_a_mixture_takes_no_vectors(tmp_path: Path) -> None:
    write_log(tmp_path, ["a", "b"])
    write_vectors(tmp_path, {"a": [1.0], "c": [1.0]})
    prepare(data_config(tmp_path, cold_items=True))
    mixture = {"name": "mixture", "sets": {"one": str(tmp_path / "set"), "two": str(tmp_path / "set")}}
    values = {"source": mixture, "prepared": str(tmp_path / "mixed")}
    with pytest.raises(ValueError, match=r"item_vectors are read beside a log, and a mixture has none"):
        DataConfig.model_validate(values | {"item_vectors": {"path": "x"}})
    with pytest.raises(DataError, match=r"set has 1 cold items, and a mixture has no vectors to know them by"):
        prepare(DataConfig.model_validate(values))
