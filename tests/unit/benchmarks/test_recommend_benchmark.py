"""The benchmark of recommendations asks what users ask: known items, requests of the size it says."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from whole_number_model import WholeNumberModel

from genrec.data.schema import ITEMS_FILE
from genrec.inference.recommender import Recommender
from recommend import answer, command_once, histories_of


def test_histories_are_answered_in_requests(
    tmp_path: Path, write_prepared, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3]], num_items=12)
    recommender = Recommender(WholeNumberModel(12), make_config(prepared), pq.read_table(prepared / ITEMS_FILE))
    histories = histories_of(recommender, 7, 5)
    assert [len(history) for history in histories] == [5] * 7
    assert {item for history in histories for item in history} <= {10 * i for i in range(1, 13)}
    sizes: list[int] = []
    real = recommender.recommend_many

    def watched(part, *arguments, **named):
        sizes.append(len(part))
        return real(part, *arguments, **named)

    monkeypatch.setattr(recommender, "recommend_many", watched)
    assert answer(recommender, histories, 3, 4) > 0
    assert sizes == [3, 3, 1]


def test_a_command_that_fails_is_a_row(tmp_path: Path) -> None:
    row = command_once(tmp_path / "no-run", 3)
    assert row["status"] == "failed"
    assert "no-run" in str(row["error"])
