"""Results of background validations on disk, and the run's best that follows from them in whatever order they come."""

import itertools
import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from validation_results import PROTOCOL, result_of

from genrec.training.state import TrainState
from genrec.training.validations import (
    best_of,
    count_try,
    drop_after,
    forget_problems,
    protocol_of,
    read_results,
    take_up,
    write_result,
)


def inline(metrics: dict[int, float]) -> TrainState:
    """What a run that validates in order says of its best (hooks.py)."""
    state = TrainState()
    for step, metric in metrics.items():
        if state.best_metric is None or metric > state.best_metric:
            state.best_metric, state.best_step, state.validations_without_gain = metric, step, 0
        else:
            state.validations_without_gain += 1
    return state


def test_results_come_back_oldest_first(tmp_path: Path) -> None:
    folder = tmp_path / "validations"
    assert read_results(folder) == {}
    results = {step: result_of(step, 0.1 * step) for step in (3, 20, 100)}
    for step in (100, 3, 20):
        write_result(folder, results[step])
    assert list(read_results(folder).items()) == list(results.items())
    assert list(read_results(folder, known=[3, 100])) == [20]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("content", ["", '{"step": 20', "[]", '{"step": 20}', "3"])
def test_a_damaged_result_is_named_and_counts_as_none(tmp_path: Path, monkeypatch, content: str) -> None:
    said: list[str] = []
    monkeypatch.setattr("genrec.training.validations.logger.warning", lambda text, *values: said.append(text % values))
    write_result(tmp_path, result_of(10, 0.5))
    (tmp_path / "step_00000020.json").write_text(content)
    assert list(read_results(tmp_path)) == [10]
    assert len(said) == 1
    assert "step_00000020.json is not the result of a validation" in said[0]


@pytest.mark.parametrize("order", list(itertools.permutations([10, 20, 30, 40])))
def test_the_order_of_arrival_does_not_matter(order: tuple[int, ...]) -> None:
    metrics = {10: 0.3, 20: 0.5, 30: 0.5, 40: 0.1}
    state, arrived = TrainState(), {}
    for step in order:
        arrived[step] = result_of(step, metrics[step])
        take_up(state, arrived, PROTOCOL)
    assert state == inline(metrics)
    assert (state.best_step, state.validations_without_gain) == (20, 2)


def test_a_checkpoint_that_has_seen_some_of_them_catches_up() -> None:
    """The state of any moment, with any of the results, and then all: as the run that validates in order."""
    generator = random.Random(0)
    for _ in range(300):
        metrics = {step: generator.choice([0.1, 0.2, 0.3, 0.4]) for step in range(1, generator.randint(2, 8))}
        results = {step: result_of(step, metric) for step, metric in metrics.items()}
        some = {step: results[step] for step in metrics if generator.random() < 0.5}
        state = TrainState()
        take_up(state, some, PROTOCOL)
        restored = replace(state)
        take_up(restored, results, PROTOCOL)
        assert restored == inline(metrics)


def test_the_best_of_validations_inside_the_training_counts_too() -> None:
    state = TrainState(best_metric=0.6, best_step=50, validations_without_gain=2)
    take_up(state, {60: result_of(60, 0.5)}, PROTOCOL)
    assert (state.best_metric, state.best_step, state.validations_without_gain) == (0.6, 50, 2)
    take_up(state, {60: result_of(60, 0.5), 70: result_of(70, 0.7), 80: result_of(80, 0.7)}, PROTOCOL)
    assert (state.best_metric, state.best_step, state.validations_without_gain) == (0.7, 70, 1)


def test_other_protocols_and_failures_are_not_compared() -> None:
    other = protocol_of({"evaluation": {"metric": "hr@10", "filter_seen": True}})
    results = {
        10: result_of(10, 0.9, protocol=other),
        20: result_of(20, 0.3),
        30: result_of(30, None, problem="out of memory"),
        40: result_of(40, 0.2),
    }
    assert best_of(results.values(), PROTOCOL) == (0.3, 20)
    assert best_of(results.values(), other) == (0.9, 10)
    state = TrainState()
    take_up(state, results, PROTOCOL)
    assert (state.best_step, state.validations_without_gain) == (20, 1)
    untouched = TrainState()
    take_up(untouched, {30: results[30]}, PROTOCOL)
    assert untouched == TrainState()


def test_going_back_drops_what_is_said_about_later_steps(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_result(tmp_path, result_of(step, 0.5))
    count_try(tmp_path, 40)
    drop_after(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010.json", "step_00000020.json"]
    drop_after(tmp_path / "absent", 0)


def test_failures_are_forgotten_and_metrics_are_not(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(10, 0.5))
    write_result(tmp_path, result_of(20, None, problem="it took longer"))
    assert [count_try(tmp_path, 30), count_try(tmp_path, 30)] == [1, 2]
    forget_problems(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010.json"]
    assert json.loads((tmp_path / "step_00000010.json").read_text()) == asdict(result_of(10, 0.5))
    assert count_try(tmp_path, 30) == 1
