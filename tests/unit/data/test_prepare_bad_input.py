"""Whatever is wrong with a log, one sentence says what, where and what to do; and nothing half-made is left behind."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import DataConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.prepare import ensure_prepared, prepare
from genrec.data.prepared_folder import work_folder
from genrec.errors import DataError

GOOD = "user,item,time\n" + "".join(f"u{n % 5},i{n % 3},{n}\n" for n in range(200))


def data_config(
    tmp_path: Path, path: Path, name: str = "csv", source: dict[str, Any] | None = None, **more: Any
) -> DataConfig:
    values = {"name": name, "path": str(path), **(source or {})}
    return DataConfig.model_validate({"source": values, "prepared": str(tmp_path / "prepared"), **more})


def prepare_text(tmp_path: Path, text: str, source: dict[str, Any] | None = None, **more: Any) -> Manifest:
    (tmp_path / "log.csv").write_text(text)
    return prepare(data_config(tmp_path, tmp_path / "log.csv", source=source, **more))


def refusal(config: DataConfig) -> str:
    """The message of the error; nothing may be left beside the log."""
    folder = Path(config.prepared).parent
    before = sorted(folder.iterdir())
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "listens.csv").write_text(GOOD)
    message = refusal(data_config(tmp_path, tmp_path / "listen.csv"))
    assert "listen.csv does not exist; beside it: listens.csv" in message


def test_variable_that_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    assert "$NO_SUCH_FOLDER, which is not set" in refusal(data_config(tmp_path, Path("$NO_SUCH_FOLDER/log.csv")))


def test_folder_without_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/notes.txt").write_text("hello")
    message = refusal(data_config(tmp_path, tmp_path / "log", "parquet"))
    assert "holds no file that ends in .parquet (it holds notes.txt)" in message


@pytest.mark.parametrize("text", ["", "user,item,time\n"])
def test_empty_log(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    assert "The log is empty" in refusal(data_config(tmp_path, tmp_path / "log.csv"))


def test_empty_parquet_log(tmp_path: Path) -> None:
    table = pa.table(
        {"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64()), "time": pa.array([], pa.int64())}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    assert "The log is empty" in refusal(data_config(tmp_path, tmp_path / "log.parquet", "parquet"))


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_wrong_column(tmp_path: Path, name: str) -> None:
    if name == "csv":
        (tmp_path / "log.csv").write_text("user_id,item,time\n1,2,3\n")
    else:
        pq.write_table(pa.table({"user_id": [1], "item": [2], "time": [3]}), tmp_path / "log.parquet")
    message = refusal(data_config(tmp_path, tmp_path / f"log.{name}", name))
    assert "no column 'user' for data.source.columns.user; did you mean user_id?" in message


def test_bad_rows_are_put_aside_by_reason(tmp_path: Path) -> None:
    bad = ",i1,5,1\nu1,,5,1\nu1,i1,yesterday,1\nu1,i1,,1\nu1,i1,99999999999999,1\nu1,i1,5,-1\nu1,i1,5,many\nu1,i1\n"
    text = "user,item,time,seconds\n" + "u1,i1,5,1\n" * 100 + bad
    manifest = prepare_text(tmp_path, text, {"columns": {"value": "seconds"}}, max_rejected_fraction=0.1)
    assert manifest.num_events == 100
    assert manifest.rejected == {
        "null user": 1,
        "null item": 1,
        "unparsable time": 2,
        "time out of range": 1,
        "negative value": 1,
        "unparsable value": 1,
        "wrong number of fields": 1,
    }
    rows = pq.read_table(tmp_path / "prepared/rejected").to_pylist()
    assert [row["line"] for row in rows if row["reason"] == "wrong number of fields"] == ["u1,i1"]
    assert {row["reason"] for row in rows if row["row"] is None} == {"wrong number of fields"}
    assert {(r["reason"], r["row"], r["user"], r["time"], r["value"]) for r in rows if r["line"] is None} == {
        ("null user", 100, None, "5", "1"),
        ("null item", 101, "u1", "5", "1"),
        ("unparsable time", 102, "u1", "yesterday", "1"),
        ("unparsable time", 103, "u1", None, "1"),
        ("time out of range", 104, "u1", "99999999999999", "1"),
        ("negative value", 105, "u1", "5", "-1"),
        ("unparsable value", 106, "u1", "5", "many"),
    }
    assert {row["file"] for row in rows} == {str(tmp_path / "log.csv")}


def test_too_many_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD + "u9,i1,noon\n" * 3 + ",i1,5\n" * 2)
    config = data_config(tmp_path, tmp_path / "log.csv", max_rejected_fraction=0.02)
    message = refusal(config)
    assert "5 of 205 rows are bad, more than data.max_rejected_fraction = 0.02" in message
    assert "3  unparsable time         row 200 of" in message and "time='noon'" in message
    assert "2  null user" in message
    assert prepare(config.model_copy(update={"max_rejected_fraction": 5 / 205})).num_events == 200


def test_null_ids_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"user": [1.0, None, 2.0, float("nan")], "item": ["a", "b", None, "c"], "time": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "log.parquet")
    config = data_config(tmp_path, tmp_path / "log.parquet", "parquet", max_rejected_fraction=1)
    manifest = prepare(config)
    assert (manifest.num_events, manifest.rejected) == (1, {"null user": 2, "null item": 1})
    assert pq.read_table(tmp_path / "prepared/users.parquet")["user"].to_pylist() == [1]


def test_milliseconds_are_not_guessed(tmp_path: Path) -> None:
    times = "user,item,time\n" + "".join(f"u,i{n},{1_700_000_000_123 + n}\n" for n in range(9))
    (tmp_path / "log.csv").write_text(times)
    message = refusal(data_config(tmp_path, tmp_path / "log.csv"))
    assert "9  time out of range" in message and "data.source.columns.time_unit" in message
    manifest = prepare_text(tmp_path, times, {"columns": {"time_unit": "ms"}})
    assert manifest.time_range == (1_700_000_000, 1_700_000_000)


def test_one_user(tmp_path: Path) -> None:
    manifest = prepare_text(tmp_path, "user,item,time\n" + "".join(f"me,{n},{n}\n" for n in range(5)), num_shards=4)
    assert (manifest.num_users, manifest.num_events, manifest.num_train_events, len(manifest.files)) == (1, 5, 3, 1)


def test_histories_of_one_event(tmp_path: Path) -> None:
    manifest = prepare_text(tmp_path, GOOD + "lonely,i1,7\n")
    assert manifest.num_users == 6 and manifest.length_histogram == {1: 1, 64: 5}
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"u{n},i1,7\n" for n in range(4)))
    alone = prepare(data_config(tmp_path, tmp_path / "log.csv"), overwrite=True)
    assert (alone.num_users, alone.num_train_events, alone.length_histogram) == (4, 4, {1: 4})


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_parquet_names_the_file(tmp_path: Path, damage: str) -> None:
    (tmp_path / "log").mkdir()
    table = pa.table({"user": list(range(1000)), "item": [n * 7 for n in range(1000)], "time": list(range(1000))})
    for number in range(2):
        pq.write_table(table, tmp_path / f"log/{number}.parquet")
    path = tmp_path / "log/1.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:2000] if damage == "truncated" else content[:4] + bytes(3000) + content[3004:])
    message = refusal(data_config(tmp_path, tmp_path / "log", "parquet"))
    assert "log/1.parquet cannot be read" in message and "is it complete?" in message


def test_shards_of_different_types(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"user": [1], "item": [1], "time": [1]}), tmp_path / "log/0.parquet")
    pq.write_table(pa.table({"user": ["1"], "item": [1], "time": [1]}), tmp_path / "log/1.parquet")
    message = refusal(data_config(tmp_path, tmp_path / "log", "parquet"))
    assert "1.parquet has user ids of type string, but" in message and "has integer" in message


def test_ids_beyond_64_bits(tmp_path: Path) -> None:
    table = pa.table({"user": pa.array([2**64 - 1], pa.uint64()), "item": [1], "time": [1]})
    pq.write_table(table, tmp_path / "log.parquet")
    message = refusal(data_config(tmp_path, tmp_path / "log.parquet", "parquet"))
    assert "user column holds uint64 values that are no 64-bit integers; store ids as strings" in message
    # As text they are ids like any other.
    manifest = prepare_text(tmp_path, f"user,item,time\n{2**64 - 1},1,1\n5,1,1\n")
    assert manifest.num_users == 2
    assert set(pq.read_table(tmp_path / "prepared/users.parquet")["user"].to_pylist()) == {str(2**64 - 1), "5"}


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(
        ("user,item,time\n" + "".join(f"u{n * 7919 % 997},i{n},{n}\n" for n in range(50_000))).encode()
    )
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    message = refusal(data_config(tmp_path, tmp_path / "log.csv.gz"))
    assert "log.csv.gz cannot be read (Truncated compressed stream)" in message


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("user,item,time\nJosé,1,1\n".encode("latin-1"))
    assert "1  not UTF-8" in refusal(data_config(tmp_path, tmp_path / "log.csv"))


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "file").write_text("")
    config = data_config(tmp_path, tmp_path / "log.csv").model_copy(update={"prepared": str(tmp_path / "file/set")})
    with pytest.raises(DataError, match=r"cannot be written .*set data.prepared to another folder"):
        prepare(config)


def test_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"holds other files \(thesis.tex\)"):
        prepare(data_config(tmp_path, tmp_path / "log.csv"), overwrite=True)
    assert (tmp_path / "prepared/thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("filters", "words"),
    [({"min_user_events": 1_000}, "min_user_events = 1000"), ({"min_item_events": 1_000}, "min_item_events = 1000")],
)
def test_filters_that_drop_everything(tmp_path: Path, filters: dict[str, int], words: str) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    message = refusal(data_config(tmp_path, tmp_path / "log.csv", **filters))
    assert "The filters drop every event" in message and words in message


def test_min_value_that_drops_everything(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,stars\nu,i,1,3\n")
    source = {"columns": {"value": "stars"}}
    message = refusal(data_config(tmp_path, tmp_path / "log.csv", source=source, min_value=4))
    assert "1 rows have a value below data.min_value = 4" in message
    message = refusal(data_config(tmp_path, tmp_path / "log.csv", min_value=4))
    assert "needs a value column" in message


def test_global_time_needs_times_and_training_events(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    split = {"name": "global-time", "validation_from": -2, "test_from": -1}
    assert "leaves no event for training" in refusal(data_config(tmp_path, tmp_path / "log.csv", split=split))
    (tmp_path / "log.txt").write_text("1 2\n1 3\n")
    config = data_config(tmp_path, tmp_path / "log.txt", "sequence-text", {"layout": "pairs"}, split=split)
    assert "needs event times" in refusal(config)
    config = data_config(tmp_path, tmp_path / "log.txt", "sequence-text", {"layout": "pairs"}, max_time=5)
    assert "data.max_time = 5 needs event times" in refusal(config)


def test_not_one_good_file(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/1.csv").write_text("user,thing,time\n1,2,3\n")
    config = data_config(tmp_path, tmp_path / "log", max_rejected_files=5)
    assert "No file of the log can be used" in refusal(config) and "has no column 'item'" in refusal(config)


def test_too_many_actions(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,action\n" + "".join(f"u,i,{n},a{n}\n" for n in range(256)))
    message = refusal(data_config(tmp_path, tmp_path / "log.csv", source={"columns": {"action": "action"}}))
    assert "256 different values, at most 255" in message


def test_failing_leaves_the_set_that_was_there(tmp_path: Path) -> None:
    before = prepare_text(tmp_path, GOOD)
    (tmp_path / "log.csv").write_text("user,item,time\n,,\n")
    with pytest.raises(DataError):
        prepare(data_config(tmp_path, tmp_path / "log.csv"), overwrite=True)
    assert load_manifest(tmp_path / "prepared") == before


def test_damaged_prepared_set_is_not_used(tmp_path: Path) -> None:
    manifest = prepare_text(tmp_path, GOOD)
    path = tmp_path / "prepared" / manifest.files[0].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"damaged.*--overwrite"):
        ensure_prepared(data_config(tmp_path, tmp_path / "log.csv"))


def test_what_a_killed_process_left_does_not_count(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from genrec.data.prepared_folder import work_folder\n"
        "with work_folder(Path(sys.argv[1])) as work:\n"
        "    (work / 'set').mkdir(); (work / 'set' / 'manifest.json').write_text('half')\n"
        "    (work / 'items.arrow').write_text('half')\n"
        "    (work / 'set' / 'users.csv').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "prepared")], timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / ".prepared.preparing/set/manifest.json").exists() and not (tmp_path / "prepared").exists()
    assert prepare_text(tmp_path, GOOD).num_events == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "prepared"]
    names = sorted(path.name for path in (tmp_path / "prepared").iterdir())
    assert names == ["items.parquet", "manifest.json", "sequences", "users.parquet"]


def test_two_processes_do_not_prepare_the_same_set(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    with work_folder(tmp_path / "prepared") as work:
        (work / "set").mkdir()
        with pytest.raises(DataError, match="Another process is preparing"):
            prepare(data_config(tmp_path, tmp_path / "log.csv"))
        assert (work / "set").exists()
