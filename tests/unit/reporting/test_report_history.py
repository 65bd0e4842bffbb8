"""The story that metrics.jsonl tells: one line a step, restarts taken into account."""

import json
import math
from pathlib import Path

import pytest
from fabricated_run import start_record, train_record, validation_record

from genrec.errors import DataError
from genrec.reporting.history import History, read_history


def read(folder: Path, records: list[dict[str, object]], tail: str = "") -> History:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return read_history(path)


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "metrics.jsonl")
    assert history.is_empty
    assert history.last_step == 0
    assert history.median("loss") is None


def test_a_restart_takes_back_what_was_recorded_after_its_step(tmp_path: Path) -> None:
    first = [train_record(step, loss=1.0) for step in (10, 20, 30, 40)]
    again = [train_record(30, loss=2.0)]
    records = [start_record(0), *first, validation_record(40, best=True), start_record(20, resumed=True), *again]
    history = read(tmp_path, records)
    assert history.train["step"].tolist() == [10, 20, 30]
    assert history.train["loss"].tolist() == [1.0, 1.0, 2.0]
    assert history.validations == ()
    assert history.restart_steps == [20]
    assert [start.num_repeated_steps for start in history.starts] == [0, 20]
    assert history.last_step == 30


def test_of_two_lines_about_a_step_the_later_wins(tmp_path: Path) -> None:
    records = [train_record(10, loss=1.0), train_record(20, loss=1.0), train_record(10, loss=3.0)]
    history = read(tmp_path, records)
    assert history.train["loss"].tolist() == [3.0, 1.0]


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    history = read(tmp_path, [start_record(0), train_record(10)], tail='{"kind": "train", "step": 20, "lo')
    assert history.train["step"].tolist() == [10]


def test_missing_and_odd_values_become_nan(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": 10, "loss": None, "lr": "high"}, train_record(20, loss=math.nan)]
    history = read(tmp_path, lines)
    assert all(math.isnan(value) for value in history.train["loss"])
    assert history.last("loss") is None
    assert history.last("lr") == pytest.approx(0.001 * 20 / 50)


def test_the_best_validation_is_the_last_that_is_marked(tmp_path: Path) -> None:
    records = [validation_record(60, best=True), validation_record(120, best=True), validation_record(180)]
    best = read(tmp_path, records).best_validation("ndcg@10")
    assert best is not None
    assert best.step == 120


def test_a_late_line_stands_at_its_own_step_and_only_the_highest_of_the_marked_is_best(tmp_path: Path) -> None:
    """In the background, step 20 arrives after step 30, which was the best until then, and after a restart."""
    late = validation_record(20, best=True) | {"metrics": {"ndcg@10": 0.5}, "background": True}
    records = [
        start_record(0),
        *(train_record(step) for step in (10, 20, 30)),
        start_record(30, resumed=True),
        validation_record(30, best=True) | {"metrics": {"ndcg@10": 0.4}, "background": True},
        train_record(40),
        {"kind": "validation_failed", "step": 10, "problem": "it took longer"},
        late,
    ]
    history = read(tmp_path, records)
    assert [validation.step for validation in history.validations] == [20, 30]
    assert history.last_step == 40
    assert [start.num_repeated_steps for start in history.starts] == [0, 0]
    best = history.best_validation("ndcg@10")
    assert best is not None
    assert best.step == 20
    unknown = history.best_validation("hr@7")  # no number to compare, so the run's own word counts
    assert unknown is not None
    assert unknown.step == 30


def test_without_a_mark_the_highest_metric_is_best(tmp_path: Path) -> None:
    best = read(tmp_path, [validation_record(step) for step in (60, 1_300, 4_000)]).best_validation("ndcg@10")
    assert best is not None
    assert best.step == 1_300
    assert read(tmp_path, [validation_record(60)]).best_validation("hr@7") is None


@pytest.mark.parametrize("line", ["3", '{"kind": "train", "loss": 1.0}', '{"kind": "train", "step": null}'])
def test_a_line_without_a_step_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="record 2 has no step; remove the line"):
        read(tmp_path, [train_record(10)], tail=line + "\n")


def test_unknown_kinds_are_left_alone(tmp_path: Path) -> None:
    history = read(tmp_path, [train_record(10), {"kind": "profile", "step": 99}])
    assert history.last_step == 10
