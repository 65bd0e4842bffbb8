"""The benchmark of large catalogues at a small size: its table by shards, and its check by the whole matrix."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluation

TASK: dict[str, Any] = {
    "items": 3_000,
    "users": 30,
    "dim": 8,
    "threads": 1,
    "listed": 5,
    "history": 6,
    "users_per_batch": 8,
    "max_scores_bytes": 8 * 4 * 200,  # 15 chunks of the catalogue
    "check": 30,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker needs no process of its own here."""

    def start(task: dict[str, Any], count: int, mode: str) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(count))
        {"work": evaluation.work, "check": evaluation.check}[mode](task)

    monkeypatch.setattr(evaluation, "start", start)


def test_ranks_are_those_of_the_whole_matrix() -> None:
    row = evaluation.measure(TASK, 1)
    assert row["largest_distance"] in (0, 1)
    assert row["table_bytes"] == 4 * 3_001 * 8
    assert float(row["users_per_s"] or 0) > 0


def test_wrong_ranks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "check", lambda task: _write(task, [(1_500, 1_499, 1_501)] * 30))
    with pytest.raises(RuntimeError, match=r"a user's rank is \d+, and by the whole matrix it is 1499 to 1501"):
        evaluation.measure(TASK, 1)


def _write(task: dict[str, Any], ranks: list[tuple[int, int, int]]) -> None:
    Path(task["out"], "check.json").write_text(json.dumps(ranks))


def test_shards_are_rows_of_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SEED_ROWS", 100)
    whole = evaluation.table_rows(0, 350, 4)
    parts = [evaluation.table_rows(first, end, 4) for first, end in ((0, 120), (120, 300), (300, 350))]
    assert torch.equal(torch.cat(parts), whole)
