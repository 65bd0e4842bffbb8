"""The log of string ids has every item that it was asked for."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import vocabulary


def test_every_item_occurs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "EVENTS_PER_FILE", 700)
    vocabulary.write_text_log(tmp_path / "log", num_events=2_000, num_items=900, num_users=50)
    table = pq.read_table(tmp_path / "log")
    assert len(table) == 2_000
    assert len(pc.unique(table["item"])) == 900
    assert set(pc.utf8_length(table["item"]).to_pylist()) == {28}
    assert table["time"].to_pylist() == sorted(table["time"].to_pylist())


def test_fewer_events_than_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="raise --events"):
        vocabulary.write_text_log(tmp_path / "log", num_events=5, num_items=6, num_users=2)
