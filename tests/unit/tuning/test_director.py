"""The books of a sweep: no trial lost or run twice, whatever is killed; budgets, costs and reasons."""

import time

import pytest
from tiny_sweep import director_of, finish, loaded, validation

from genrec.cli_tune import _end
from genrec.config import SemanticIdsConfig
from genrec.errors import ConfigError, DataError, RunError, StorageError
from genrec.tuning.records import Progress, read_sweep, write_progress
from genrec.tuning.sweep import _check_some_ran


def test_trials_are_handed_out_once_and_the_best_is_found(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    for value in (0.2, 0.5, 0.4, 0.1):
        trial = director.next_trial()
        assert trial is not None
        finish(director, trial, 0.05, value)
    assert director.next_trial() is None
    director.close()
    sweep = read_sweep(director.folder)
    assert sweep is not None
    assert sweep.state == "finished"
    assert [trial.state for trial in sweep.trials] == ["finished"] * 4
    assert sweep.best == 1
    assert sweep.trials[1].best["ndcg@10"] == 0.5


def test_a_killed_command_goes_on_with_the_same_trials(tmp_path, base) -> None:
    """Killed twice: once with a trial under way, once after a trial had ended and before that was written down."""
    spec, loaded_base = loaded(tmp_path, base)
    straight = director_of(*loaded(tmp_path, base, name="straight"))
    while (trial := straight.next_trial()) is not None:
        finish(straight, trial, 0.1)

    first = director_of(spec, loaded_base)
    finish(first, first.next_trial(), 0.1)
    running = first.next_trial()  # and nothing more is heard of it

    second = director_of(spec, loaded_base)
    again = second.next_trial()
    assert (again.number, again.params) == (running.number, running.params)
    write_progress(
        second.folder.progress_path(again.id), Progress(history=[validation(1, 0.3)], outcome="finished", attempts=2)
    )

    third = director_of(spec, loaded_base)
    assert third.sweep.trials[1].state == "finished"
    assert third.sweep.best is None or third.sweep.trials[1].best["ndcg@10"] == 0.3
    numbers = []
    while (trial := third.next_trial()) is not None:
        numbers.append(trial.number)
        finish(third, trial, 0.1)
    assert numbers == [2, 3]
    third.close()
    table = [(trial.number, trial.params, trial.state) for trial in third.sweep.trials]
    assert table == [(trial.number, trial.params, trial.state) for trial in straight.sweep.trials]
    assert len(third.sweep.spans) == 3


def test_doomed_trials_are_rejected_with_their_reason_and_never_start(tmp_path, base) -> None:
    def small(config) -> None:
        if config.cluster.workers > 2:
            raise ConfigError("too many workers.")

    space = {"cluster.workers": {"choice": [1, 2, 4]}, "batch.micro_batches_per_step": {"choice": [4]}}
    spec, loaded_base = loaded(tmp_path, base, space=space, searcher={"name": "grid"}, budget={})
    director = director_of(spec, loaded_base, cluster=small)
    started = []
    while (trial := director.next_trial()) is not None:
        started.append(trial.params["cluster.workers"])
        finish(director, trial, 0.1)
    assert started == [1, 1, 2]  # the base first, whose micro-batches are others
    rejected = [trial for trial in director.sweep.trials if trial.state == "rejected"]
    assert [(trial.params["cluster.workers"], trial.reason) for trial in rejected] == [(4, "too many workers.")]


def test_what_does_not_fit_into_memory_or_has_no_data_is_rejected(tmp_path, base, monkeypatch) -> None:
    """The planner's own word, and a file that a trial's setting names and nobody has made."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    space = {"model.dim": {"choice": [2_000_000, 16]}}
    director = director_of(*loaded(tmp_path, base, space=space, searcher={"name": "grid"}, budget={}))
    director.next_trial()
    assert director.next_trial().params == {"model.dim": 16}
    assert director.sweep.trials[1].state == "rejected"
    assert "memory" in director.sweep.trials[1].reason

    def absent(_) -> None:
        raise DataError("the codes are not there.")

    director = director_of(*loaded(tmp_path, base, name="absent"), cluster=absent)
    assert director.next_trial() is None
    assert {trial.reason for trial in director.sweep.trials} == {"the codes are not there."}


def test_maps_of_codes_are_named_by_whole_paths(tmp_path, base, monkeypatch) -> None:
    """Ray Tune gives every trial a folder of its own to run in."""
    monkeypatch.chdir(tmp_path)
    space = {
        "semantic_ids.path": {"choice": ["maps/a", "maps/b"]},
        "model.dropout": {"choice": [0.25], "when": {"semantic_ids.path": ["maps/b"]}},
    }
    coded = base.model_copy(update={"semantic_ids": SemanticIdsConfig(path="maps/a")})
    director = director_of(*loaded(tmp_path, coded, space=space, searcher={"name": "grid"}, budget={}))
    searched = [trial.params for trial in iter(director.next_trial, None)]
    maps = [str(tmp_path / "maps" / name) for name in "ab"]
    assert searched == [
        {"semantic_ids.path": maps[0]},  # the base, and not once more
        {"semantic_ids.path": maps[1], "model.dropout": 0.25},
    ]


def test_many_rejected_trials_do_not_end_a_sweep_in_which_some_can_run(tmp_path, base, monkeypatch) -> None:
    monkeypatch.setattr("genrec.tuning.director.MAX_REJECTED", 3)

    def small(config) -> None:
        if 1 < config.optimizer.warmup_steps < 7:
            raise ConfigError("not this one.")

    space = {"optimizer.warmup_steps": {"integer": [1, 8]}}
    settings = {"space": space, "searcher": {"name": "grid"}, "budget": {}}
    director = director_of(*loaded(tmp_path, base, **settings), cluster=small)
    while (trial := director.next_trial()) is not None:
        finish(director, trial, 0.1)
    director.close()
    states = [trial.state for trial in director.sweep.trials]
    assert (states.count("rejected"), states[-1], len(states), director.sweep.state) == (5, "finished", 9, "finished")

    def none(_) -> None:
        raise ConfigError("too small.")

    hopeless = director_of(*loaded(tmp_path, base, name="hopeless", **settings), cluster=none)
    assert hopeless.next_trial() is None
    assert len(hopeless.sweep.trials) == 3


def test_an_interrupted_sweep_is_called_that_and_goes_on(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    finish(director, director.next_trial(), 0.1)
    director.close()  # between two trials
    assert (director.sweep.state, director.sweep.reason) == ("interrupted", "the command was interrupted")
    director = director_of(*loaded(tmp_path, base))
    running = director.next_trial()
    director.close()
    assert (running.state, running.reason) == ("cut", "the command was interrupted")
    assert director.sweep.state == "interrupted"
    assert director_of(*loaded(tmp_path, base)).next_trial().number == running.number


def test_more_retries_later_are_for_trials_that_had_too_few(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base, budget={"trials": 2, "retries": 0}))
    crashed, wrong = director.next_trial(), director.next_trial()
    write_progress(director.folder.progress_path(crashed.id), Progress(attempts=1))
    director.ended(crashed, "its process ended")
    finish(director, wrong, outcome="failed", error="loss is nan", attempts=1)
    again = director_of(*loaded(tmp_path, base, budget={"trials": 2, "retries": 0}))
    assert again.next_trial() is None
    more = director_of(*loaded(tmp_path, base, budget={"trials": 2, "retries": 1}))
    assert more.next_trial().number == crashed.number
    assert more.next_trial() is None
    assert more.sweep.trials[1].state == "failed"


def test_fewer_trials_later_cut_those_that_are_not_done(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    finish(director, director.next_trial(), 0.1)
    director.next_trial()
    director.next_trial()
    fewer = director_of(*loaded(tmp_path, base, budget={"trials": 2}))
    assert fewer.next_trial().number == 1
    assert fewer.next_trial() is None
    assert (fewer.sweep.trials[2].state, fewer.sweep.trials[2].reason) == ("cut", "budget.trials (2) is used up")


def test_a_price_that_is_given_later_counts_for_all_trials(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    finish(director, director.next_trial(), 0.1, worker_seconds=3_600.0)
    priced = director_of(*loaded(tmp_path, base, budget={"trials": 4, "price_per_worker_hour": 2.0}))
    assert priced.sweep.trials[0].price == pytest.approx(2.0)


def test_a_trial_without_an_outcome_was_stopped_and_one_with_an_error_has_failed(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base, scheduler={"name": "asha"}))
    stopped, failed, crashed = director.next_trial(), director.next_trial(), director.next_trial()
    finish(director, stopped, 0.3, outcome=None)
    assert (stopped.state, stopped.reason) == ("stopped", "by asha after 1 epochs")
    finish(director, failed, 0.9, outcome="failed", error="loss is nan")
    assert (failed.state, failed.reason) == ("failed", "loss is nan")
    director.ended(crashed, "its process ended")
    assert (crashed.state, crashed.reason) == ("failed", "its process ended")
    assert director.sweep.best == stopped.number  # what a failed trial reached does not count


def test_the_worker_budget_cuts_and_a_larger_one_goes_on(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base, budget={"trials": 4, "worker_hours": 1})
    director = director_of(spec, loaded_base)
    finish(director, director.next_trial(), 0.1, worker_seconds=1_800.0)
    running = director.next_trial()
    assert director.over_budget() is None
    write_progress(director.folder.progress_path(running.id), Progress(worker_seconds=1_801.0))
    director.look()
    assert director.over_budget() == "budget.worker_hours (1) is used up"
    assert director.next_trial() is None
    director.close()
    assert (running.state, director.sweep.state) == ("cut", "out of budget")

    larger, _ = loaded(tmp_path, base, budget={"trials": 4, "worker_hours": 9})
    director = director_of(larger, loaded_base)
    assert director.next_trial().number == running.number


def test_the_time_budget_counts_all_starts(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base, budget={"trials": 4, "hours": 1})
    director = director_of(spec, loaded_base)
    director.sweep.spans.insert(0, [0.0, 3_599.0])
    assert director.over_budget() is None
    director.sweep.spans[-1][0] = time.time() - 2
    assert director.over_budget() == "budget.hours (1) is used up"


def test_costs_are_of_all_attempts(tmp_path, base) -> None:
    budget = {"trials": 4, "price_per_worker_hour": 3.0}
    director = director_of(*loaded(tmp_path, base, budget=budget))
    trial = director.next_trial()
    finish(director, trial, 0.1, worker_seconds=1_200.0, seconds=600.0, attempts=2)
    assert trial.price == pytest.approx(1.0)
    assert director.sweep.worker_seconds == 1_200.0


def test_the_size_of_a_model_is_known_before_it_starts(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base, space={"model.num_layers": {"choice": [1, 2]}}))
    small, large = director.next_trial(), director.next_trial()
    assert small.num_parameters < large.num_parameters


def test_a_cluster_that_has_lost_its_machines_ends_the_sweep_and_loses_no_trial(tmp_path, base, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("genrec.tuning.director.time.monotonic", lambda: clock[0])
    director = director_of(*loaded(tmp_path, base))
    running = director.next_trial()
    for at_s, problem in ((0, "too small."), (590, None), (600, "too small."), (1_190, "too small.")):
        clock[0] = float(at_s)
        director.take_room(problem)
        assert director.must_end() is None, "machines that come back count from nothing again"
    clock[0] = 1_200.0
    director.take_room("too small.")
    assert director.must_end() == "The cluster has had no room for any trial for 10 minutes: too small."
    assert director.next_trial() is None
    director.close()
    assert (running.state, running.reason) == ("cut", director.sweep.reason)
    assert director.sweep.state == "interrupted"
    with pytest.raises(RunError, match=r"no room for any trial .* too small\. The sweep has ended early; the same"):
        _end(director.sweep)
    assert director_of(*loaded(tmp_path, base)).next_trial().number == running.number


def test_machines_that_do_not_come_reject_a_trial_and_a_storage_that_fails_does_not(tmp_path, base) -> None:
    def late(config) -> None:
        raise RunError("After placement.wait_s (5 s): too small.")

    director = director_of(*loaded(tmp_path, base), cluster=late)
    assert director.next_trial() is None
    assert {(trial.state, trial.reason) for trial in director.sweep.trials} == {
        ("rejected", "After placement.wait_s (5 s): too small.")
    }

    def away(config) -> None:
        raise StorageError("The bucket does not answer.")

    director = director_of(*loaded(tmp_path, base, name="away"), cluster=away)
    assert director.next_trial() is None
    director.close()
    assert (director.sweep.trials, director.sweep.reason) == ([], "The bucket does not answer.")


def test_a_metric_that_is_no_number_in_any_trial_is_one_sentence(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    while (trial := director.next_trial()) is not None:
        finish(director, trial, float("nan"), outcome="failed", error="ndcg@10 is nan at step 10.")
    director.close()
    assert director.sweep.best is None
    with pytest.raises(RunError, match="None of the 4 trials has run to an end; trial 0000 was failed: ndcg@10 is nan"):
        _check_some_ran(director.sweep)
    director.sweep.trials[1].state = "finished"
    _check_some_ran(director.sweep)
