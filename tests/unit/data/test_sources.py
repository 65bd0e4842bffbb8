"""Every kind of source as the same log: what is read from the files, before anything is filtered or sorted."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from genrec.config import Source
from genrec.data import sources
from genrec.data.log_parts import read_part
from genrec.data.sources import Log, open_log
from genrec.errors import DataError

PAIRS = "7 12\n7 3\n5 12\n7 12\n"
LISTS = "7 12 3 12\n5 12\n"


def log_of(tmp_path: Path, **values: Any) -> Log:
    return open_log(TypeAdapter(Source).validate_python(values), tmp_path / "work")


def rows_of(log: Log) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    """All rows of the log as (user, item, time?, ...), and the lines that are no rows."""
    malformed: dict[str, int] = {}

    def on_malformed(reason: str, texts: Sequence[str]) -> None:
        malformed[reason] = malformed.get(reason, 0) + len(texts)

    blocks = [block for part in log.parts for block in read_part(part, on_malformed)]
    return [tuple(row.values()) for block in blocks for row in block.to_pylist()], malformed


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_file(tmp_path: Path, suffix: str) -> None:
    text = '\ufeffwhen,listener,note,track\r\n5,"a,b","x",t1\r\n6,c,,t2\r\n\r\n7,,,t3\r\n'
    path = save(tmp_path / f"log.csv{suffix}", text)
    columns = {"user": "listener", "item": "track", "time": "when"}
    log = log_of(tmp_path, name="csv", path=str(path), columns=columns)
    assert rows_of(log) == ([("a,b", "t1", "5"), ("c", "t2", "6"), (None, "t3", "7")], {})
    assert log.columns == {"user", "item", "time"} and log.text_ids


def test_csv_folder_is_read_by_name(tmp_path: Path) -> None:
    save(tmp_path / "log/day=2/b.csv", "user|item|time\nu|3|1\n")
    save(tmp_path / "log/day=1/z.csv.gz", "user|item|time\nu|2|1\n")
    save(tmp_path / "log/day=1/a.csv", "item|user|time\n1|u|1\n")
    save(tmp_path / "log/day=1/empty.csv", "")
    save(tmp_path / "log/_SUCCESS.csv", "marker")
    save(tmp_path / "log/.hidden/x.csv", "marker")
    save(tmp_path / "log/readme.md", "hello")
    log = log_of(tmp_path, name="csv", path=str(tmp_path / "log"), delimiter="|")
    assert rows_of(log)[0] == [("u", "1", "1"), ("u", "2", "1"), ("u", "3", "1")]


def test_csv_lines_with_other_fields(tmp_path: Path) -> None:
    path = save(tmp_path / "log.csv", "user,item,time\na,b,1\na,b\na,b,1,2\nc,d,2\n")
    rows, malformed = rows_of(log_of(tmp_path, name="csv", path=str(path)))
    assert rows == [("a", "b", "1"), ("c", "d", "2")]
    assert malformed == {"wrong number of fields": 2}


def test_parquet_folder_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART_ROWS", 5)
    for number in range(2):
        table = pa.table({"t": range(10), "u": [number] * 10, "i": [f"i{n}" for n in range(10)], "unused": [0.5] * 10})
        (tmp_path / "log").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"log/{number}.parquet", row_group_size=3)
    columns = {"user": "u", "item": "i", "time": "t"}
    log = log_of(tmp_path, name="parquet", path=str(tmp_path / "log"), columns=columns)
    assert [(part.row_groups, part.first_row, part.num_rows) for part in log.parts] == [
        ((0, 1), 0, 6),
        ((2, 3), 6, 4),
        ((0, 1), 0, 6),
        ((2, 3), 6, 4),
    ]
    assert rows_of(log)[0] == [(number, f"i{n}", n) for number in range(2) for n in range(10)]
    assert log.num_rows == 20 and not log.text_ids


def test_parquet_by_uri(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), tmp_path / "log.parquet")
    assert rows_of(log_of(tmp_path, name="parquet", path=(tmp_path / "log.parquet").as_uri()))[0] == [(1, 2, 3)]
    with pytest.raises(DataError, match=r"nowhere.parquet does not exist"):
        log_of(tmp_path, name="parquet", path=(tmp_path / "nowhere.parquet").as_uri())
    with pytest.raises(DataError, match=r"nosuchscheme://x cannot be listed"):
        log_of(tmp_path, name="parquet", path="nosuchscheme://x")


def test_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LOGS", str(tmp_path))
    save(tmp_path / "log.txt", PAIRS)
    assert len(rows_of(log_of(tmp_path, name="sequence-text", path="$MY_LOGS/log.txt", layout="pairs"))[0]) == 4


@pytest.mark.parametrize("name", ["set.inter", "set.inter.gz"])
def test_recbole(tmp_path: Path, name: str) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    path = save(tmp_path / name, header + '\n196\t242\t3\t881250949\n186\t"30\t3.5\t881250950.0\n')
    expected = [("196", "242", "881250949", "3"), ("186", '"30', "881250950.0", "3.5")]
    for place in (path, tmp_path):
        log = log_of(tmp_path, name="recbole", path=str(place))
        assert rows_of(log)[0] == expected
        assert log.columns == {"user", "item", "time", "value"}


def test_recbole_without_times_and_with_other_fields(tmp_path: Path) -> None:
    path = save(tmp_path / "set.inter", "item_id:token\tcontext:token_seq\tuser_id:token\n1\tx y\tu\n")
    log = log_of(tmp_path, name="recbole", path=str(path))
    assert rows_of(log)[0] == [("u", "1")] and log.columns == {"user", "item"}
    save(tmp_path / "set.inter", "user:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match=r"no column 'user_id' .* did you mean user"):
        log_of(tmp_path, name="recbole", path=str(path))
    save(tmp_path / "other.inter", "user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match=r"holds 2 .inter files"):
        log_of(tmp_path, name="recbole", path=str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_sequence_text_keeps_its_order(tmp_path: Path, suffix: str) -> None:
    pairs = save(tmp_path / f"pairs.txt{suffix}", PAIRS)
    lists = save(tmp_path / f"lists.txt{suffix}", LISTS)
    tabs = save(tmp_path / f"tabs.txt{suffix}", PAIRS.replace(" ", "\t"))
    in_pairs = log_of(tmp_path, name="sequence-text", path=str(pairs), layout="pairs")
    in_lists = log_of(tmp_path, name="sequence-text", path=str(lists), layout="lists")
    with_tabs = log_of(tmp_path, name="sequence-text", path=str(tabs), layout="pairs")
    assert rows_of(in_pairs)[0] == [("7", "12"), ("7", "3"), ("5", "12"), ("7", "12")] == rows_of(with_tabs)[0]
    assert rows_of(in_lists)[0] == [("7", "12"), ("7", "3"), ("7", "12"), ("5", "12")]
    assert "time" not in in_pairs.columns | in_lists.columns


def test_sequence_text_lines_that_are_no_events(tmp_path: Path) -> None:
    path = save(tmp_path / "log.txt", "7  12\t3 \n\n 5\n9 1\n")
    rows, malformed = rows_of(log_of(tmp_path, name="sequence-text", path=str(path), layout="lists"))
    assert rows == [("7", "12"), ("7", "3"), ("9", "1")] and malformed == {"user without items": 1}
    rows, malformed = rows_of(
        log_of(tmp_path, name="sequence-text", path=str(save(path, "1 2\n1 2 3\n4\n5 6\n")), layout="pairs")
    )
    assert rows == [("1", "2"), ("5", "6")] and malformed == {"wrong number of fields": 2}


def test_lists_over_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.data.log_parts.TEXT_BLOCK_BYTES", 200)
    lines = [[str(user)] + [str(user + k) for k in range(user % 9 + 1)] for user in range(200)]
    path = save(tmp_path / "log.txt", "".join(" ".join(line) + "\n" for line in lines))
    log = log_of(tmp_path, name="sequence-text", path=str(path), layout="lists")
    assert rows_of(log)[0] == [(line[0], item) for line in lines for item in line[1:]]
    assert len(list(read_part(log.parts[0], lambda reason, rows: None))) > 5


def test_item_table_needs_its_id_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), tmp_path / "log.parquet")
    values = {"name": "parquet", "path": str(tmp_path / "log.parquet"), "items_path": str(tmp_path / "items.parquet")}
    pq.write_table(pa.table({"track": [1]}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet has no column 'item' \(it has track\)"):
        log_of(tmp_path, **values)
    pq.write_table(pa.table({"item": [2.0], "genre": ["x"], "title": ["Two"]}), tmp_path / "items.parquet")
    info = log_of(tmp_path, **values).item_info
    assert info is not None and info.to_pylist() == [{"item": "2", "title": "Two"}]
    pq.write_table(pa.table({"item": [12345678901.0, None], "title": ["Far", "None"]}), tmp_path / "items.parquet")
    info = log_of(tmp_path, **values).item_info  # pandas makes floats of ids where one is missing
    assert info is not None and info["item"].to_pylist() == ["12345678901", None]
    pq.write_table(pa.table({"item": [2], "title": [["Two", "Zwei"]]}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet"):
        log_of(tmp_path, **values)
