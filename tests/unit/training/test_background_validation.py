"""The workers' half: which steps are validated, what becomes of the results, and when the run stops."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from step_guard_context import context_of
from validation_results import PROTOCOL, result_of

from genrec.config import ExperimentConfig
from genrec.run_dir import RunDir
from genrec.training.background_validation import BackgroundValidationHook, catch_up
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard
from genrec.training.tracking import Tracker
from genrec.training.validation_books import Books
from genrec.training.validations import write_result


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDir:
    monkeypatch.setattr("genrec.training.background_validation.LOOK_EVERY_S", 0.0)
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


@pytest.fixture
def tracker(run: RunDir) -> Iterator[Tracker]:
    tracker = Tracker(run.metrics_path)
    yield tracker
    tracker.close()


@pytest.fixture
def config(tmp_path, write_prepared, make_config):
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    return lambda *overrides: make_config(prepared, "evaluation.validation=background", *overrides)


def lines(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


class Worker0:
    """Ends steps as the loop does: the guard first, then the hook. An epoch has ten steps."""

    def __init__(self, config: ExperimentConfig, run: RunDir, tracker: Tracker) -> None:
        self.state = TrainState()
        context = context_of(run.root)
        self.guard = StepGuard(config, context, self.state)
        self.hook = BackgroundValidationHook(config, context, tracker, self.guard, self.state)

    def step(self) -> bool:
        """One step; whether its checkpoint is to be validated."""
        self.guard.allows(1.0)
        self.state.step += 1
        self.state.epochs_done, self.state.ends_epoch = self.state.step / 10, self.state.step % 10 == 0
        self.hook.after_step(self.state, StepMeter())
        return self.state.awaits_validation


def test_the_ends_of_epochs_and_of_the_run_are_validated(config, run, tracker) -> None:
    worker = Worker0(config("train.evaluate_every_epochs=3"), run, tracker)
    assert [step for step in range(1, 101) if worker.step()] == [30, 60, 90, 100]


def test_results_become_lines_once_and_say_how_late_they_are(config, run, tracker) -> None:
    worker = Worker0(config(), run, tracker)
    for _ in range(12):
        worker.step()
    write_result(run.validations_path, result_of(10, 0.25))
    worker.step()
    worker.step()
    assert (worker.state.best_metric, worker.state.best_step) == (0.25, 10)
    (line,) = lines(run)
    assert line.pop("time_s") > 0
    assert line == {
        "kind": "validation",
        "step": 10,
        "epoch": 1.0,
        "elapsed_s": 15.0,
        "background": True,
        "seconds_late": 1.0,
        "metrics": {"ndcg@10": 0.25},
        "num_users": 0,
        "seconds": 0.0,
        "best": True,
    }


def test_without_room_a_validation_is_left_out_and_the_last_never_is(config, run, tracker) -> None:
    worker = Worker0(config("evaluation.max_waiting_validations=2"), run, tracker)
    asked = []
    for step in range(1, 101):
        if step == 45:
            write_result(run.validations_path, result_of(10, None, problem="it took longer"))
        if worker.step():
            asked.append(step)
    assert asked == [10, 20, 50, 100]
    failed = {line["step"]: line["problem"] for line in lines(run) if line["kind"] == "validation_failed"}
    assert list(failed) == [30, 40, 10, 60, 70, 80, 90]
    assert failed[10] == "it took longer"
    assert failed[30].startswith("left out: 2 validations wait already; raise train.evaluate_every_epochs")


def test_patience_stops_all_workers_at_the_step_after_the_one_that_knows(config, run, tracker) -> None:
    worker = Worker0(config("train.patience=2"), run, tracker)
    for _ in range(40):
        worker.step()
    for step, metric in ((10, 0.5), (20, 0.4), (30, 0.3)):
        write_result(run.validations_path, result_of(step, metric))
    worker.step()
    assert worker.guard.asks_to_stop
    assert worker.state.stop_reason is None
    worker.step()
    assert worker.state.stop_reason == "2 validations without a better ndcg@10"


def test_worker_1_learns_when_to_stop_from_the_sum_of_the_step(config, run, tracker) -> None:
    worker = Worker0(config("train.patience=2"), run, tracker)
    worker.hook.books = None  # as on every worker but the first
    write_result(run.validations_path, result_of(10, 0.5))
    worker.step()
    assert worker.state.best_metric is None
    worker.guard.told_to_stop = True
    worker.hook.after_step(worker.state, StepMeter())
    assert worker.state.stop_reason == "2 validations without a better ndcg@10"


def test_a_restart_writes_what_is_missing_and_what_its_start_takes_back(config, run, tracker) -> None:
    for step in (10, 20):
        write_result(run.validations_path, result_of(step, step / 100))
    earlier = [
        {"kind": "train", "step": 25},
        {"kind": "validation", "step": 10},
        {"kind": "validation", "step": 30},
        {"kind": "validation_failed", "step": 20},
    ]
    for line in earlier:
        tracker.log(line)
    state = TrainState(step=25)
    Books(config(), run, tracker, state).look(state)
    assert [(line["kind"], line["step"]) for line in lines(run)[4:]] == [("validation", 20)]
    write_result(run.validations_path, result_of(30, 0.1))
    books = Books(config(), run, tracker, state)
    books.look(state)
    books.look(state)
    assert [line["step"] for line in lines(run)[5:]] == [30]
    assert (state.best_metric, state.best_step, state.validations_without_gain) == (0.2, 20, 1)


def test_a_late_older_result_is_best_only_among_those_before_it(config, run, tracker) -> None:
    for step, metric in ((10, 0.5), (20, 0.3), (30, 0.6)):
        write_result(run.validations_path, result_of(step, metric))
    state = TrainState(step=40)
    Books(config(), run, tracker, state).look(state)
    assert {line["step"]: line["best"] for line in lines(run)} == {10: True, 20: False, 30: True}


@pytest.mark.parametrize("validation", ["inline", "background"])
def test_a_restored_state_catches_up(config, run, validation: str) -> None:
    assert [config().evaluation.metric, config().evaluation.filter_seen, None] == PROTOCOL
    context = context_of(run.root)
    state = TrainState(step=25)
    catch_up(state, config(f"evaluation.validation={validation}"), context)
    assert state == TrainState(step=25)
    for step, metric in ((10, 0.5), (20, 0.3)):
        write_result(run.validations_path, result_of(step, metric))
    catch_up(state, config(f"evaluation.validation={validation}"), context)
    assert (state.best_metric, state.best_step, state.validations_without_gain) == (0.5, 10, 1)
