"""Ray's schedulers for a sweep; they are called here as Ray Tune calls them, without Ray running."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from tiny_sweep import loaded, validation

from genrec.tuning.ray_schedulers import remind, scheduler_of
from genrec.tuning.records import Progress, Trial

CONTROLLER = SimpleNamespace(get_live_trials=list)


def ran(number: int, *values: float) -> Trial:
    history = [validation(epoch, value) for epoch, value in enumerate(values, start=1)]
    return Trial(number, {}, "finished", progress=Progress(history=history))


def decisions(scheduler: TrialScheduler, name: str, *values: float) -> list[str]:
    trial = type("T", (), {"trial_id": name})()
    scheduler.on_trial_add(CONTROLLER, trial)
    found = []
    for epoch, value in enumerate(values, start=1):
        found.append(scheduler.on_trial_result(CONTROLLER, trial, validation(epoch, value)))
        if found[-1] == TrialScheduler.STOP:
            break
    return found


@pytest.mark.parametrize(
    "chosen", [{"name": "asha", "reduction": 2}, {"name": "median", "grace_epochs": 1, "min_trials": 3}]
)
def test_trials_of_an_earlier_start_are_compared_with(tmp_path, base, chosen) -> None:
    spec, loaded_base = loaded(tmp_path, base, scheduler=chosen)
    fresh, reminded = scheduler_of(spec, loaded_base), scheduler_of(spec, loaded_base)
    remind(reminded, [ran(0, 0.5, 0.6), ran(1, 0.6, 0.7), ran(2, 0.7, 0.8), ran(3)])
    assert decisions(fresh, "bad", 0.1, 0.1) == ["CONTINUE", "CONTINUE"]  # it has nothing to compare with
    assert decisions(reminded, "bad", 0.1, 0.1)[0] == "STOP"
    assert decisions(reminded, "good", 0.9, 0.9) == ["CONTINUE", "CONTINUE"]


def test_successive_halving_is_told_all_of_a_trial_that_it_would_have_stopped(tmp_path, base) -> None:
    """Trial 1 came first, and passed; replayed after trial 0 it would stop, and its second rung be forgotten."""
    spec, loaded_base = loaded(tmp_path, base, scheduler={"name": "asha", "reduction": 2})
    scheduler = scheduler_of(spec, loaded_base)
    remind(scheduler, [ran(0, 0.90, 0.90), ran(1, 0.10, 0.95)])
    assert decisions(scheduler, "new", 0.92, 0.92) == ["CONTINUE", "STOP"]


def test_less_is_better_where_the_metric_says_so(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base, scheduler={"name": "asha", "reduction": 2}, metric="loss")
    scheduler = scheduler_of(spec, loaded_base)
    for name, loss in (("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 9.0)):
        trial = type("T", (), {"trial_id": name})()
        scheduler.on_trial_add(CONTROLLER, trial)
        last = scheduler.on_trial_result(CONTROLLER, trial, {"epoch": 1, "loss": loss})
    assert last == TrialScheduler.STOP


def test_a_population_keeps_inside_of_the_space(tmp_path, base) -> None:
    space = {"optimizer.lr": {"log_uniform": [0.01, 0.011]}, "loss.name": {"choice": ["full-softmax"]}}
    spec, loaded_base = loaded(tmp_path, base, space=space, scheduler={"name": "pbt", "resample": 0.0})
    scheduler = scheduler_of(spec, loaded_base)
    config = {"job": {"trial": "0001", "params": {"optimizer.lr": 0.0105, "loss.name": "full-softmax"}}}
    for _ in range(10):
        trial = SimpleNamespace(config=config)
        config, _ = scheduler._get_new_config(None, trial)
        assert 0.01 <= config["job"]["params"]["optimizer.lr"] <= 0.011
        assert config["job"]["trial"] == "0001"
