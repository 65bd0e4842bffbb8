"""A trial's history and costs, read from the lines of its run."""

import json
import math

import pytest

from genrec.tuning.records import Progress, Trial
from genrec.tuning.results import best_entry, history_of, problem_with, take_results, trained_events


def train(step: int, loss: float, speed: float = 100.0) -> dict:
    return {"kind": "train", "step": step, "epoch": step / 10, "loss": loss, "events_per_s": speed}


def validated(step: int, value: float) -> dict:
    return {"kind": "validation", "step": step, "epoch": step / 10, "elapsed_s": 1.0, "metrics": {"ndcg@10": value}}


def test_a_history_has_one_entry_a_validation_with_the_loss_since_the_one_before() -> None:
    lines = [
        {"kind": "start"},
        train(5, 4.0),
        train(10, 2.0, 300.0),
        validated(10, 0.1),
        train(20, 1.0),
        validated(20, 0.2),
    ]
    first, second = history_of(lines, 7)
    assert (first["loss"], first["events_per_s"], first["num_parameters"]) == (3.0, 200.0, 7)
    assert (second["loss"], second["ndcg@10"], second["epoch"]) == (1.0, 0.2, 2.0)


def test_a_validation_before_the_first_log_line_has_no_loss() -> None:
    first, second = history_of([validated(10, 0.1), train(20, 1.0), validated(20, 0.2)], None)
    assert "loss" not in first and "events_per_s" not in first
    assert second["loss"] == 1.0
    assert problem_with([first], ("ndcg@10",)) is None
    for metric in ("loss", "events_per_s"):
        assert "lower train.log_every_steps" in problem_with([first], (metric,))


def test_an_interval_is_of_the_model_that_the_trial_is_ranked_by(tmp_path) -> None:
    history = [{"step": 10.0, "epoch": 1.0, "ndcg@10": 0.3}, {"step": 20.0, "epoch": 2.0, "ndcg@10": 0.2}]
    for best_step, known in ((10, {"ndcg@10": [0.2, 0.4]}), (20, {})):
        evaluation = {"validation": {"best_step": best_step, "intervals": {"ndcg@10": [0.2, 0.4]}}}
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
        trial = Trial(0, {}, "finished", progress=Progress(history=history))
        take_results(trial, tmp_path, "ndcg@10", "max")
        assert trial.intervals == known


def test_a_step_that_a_restart_validated_again_counts_once() -> None:
    lines = [train(10, 2.0), validated(10, 0.1), train(20, 1.0), validated(20, 0.3), train(20, 1.0), validated(20, 0.2)]
    assert [entry["ndcg@10"] for entry in history_of(lines, None)] == [0.1, 0.2]


def test_events_count_what_a_restart_trained_again() -> None:
    straight = [train(step, 1.0) for step in (10, 20, 30)]
    assert trained_events(straight, 1_000) == 3_000
    restarted = [train(10, 1.0), train(20, 1.0), train(10, 1.0), train(20, 1.0), train(30, 1.0)]
    assert trained_events(restarted, 1_000) == 4_000
    assert trained_events([], 1_000) == 0
    handed_over = [train(15, 1.0), {"kind": "start", "step": 12}, train(20, 1.0)]
    assert trained_events(handed_over, 1_000) == 500  # what the donor trained is the donor's


@pytest.mark.parametrize(
    ("value", "sentence"), [(math.nan, "ndcg@10 is nan at step 20"), (math.inf, "is inf"), (None, "reports no metric")]
)
def test_what_cannot_be_compared_is_a_problem(value, sentence) -> None:
    entry = {"step": 20, "epoch": 2.0, "elapsed_s": 1.0, "hr@10": 0.5}
    if value is not None:
        entry["ndcg@10"] = value
    assert sentence in problem_with([entry], ("ndcg@10",))
    assert problem_with([{**entry, "ndcg@10": 0.1}], ("ndcg@10",)) is None


def test_the_best_is_the_earlier_of_two_that_are_equal() -> None:
    history = [{"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 1.0), (4, math.nan))]
    assert best_entry(history, "loss", "min")["step"] == 2
    assert best_entry(history, "loss", "max")["step"] == 1
    assert best_entry(history, "ndcg@10", "max") is None
