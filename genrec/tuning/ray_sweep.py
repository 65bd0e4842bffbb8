"""A sweep on Ray Tune: its Tuner starts, stops and retries trials; the director says which, and keeps the books.

Tune's own snapshot of an experiment is behind by seconds, so a killed command does not go on from it. Every start makes
a Tuner for the trials that are not done, and each of those goes on from its own checkpoints.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from genrec.cluster.reservation import free_orphans
from genrec.cluster.resources import alive_machines
from genrec.cluster.room import DATA_CPUS, check_room
from genrec.config import ExperimentConfig
from genrec.errors import ConfigError
from genrec.tuning.admission import reason_of, trial_config
from genrec.tuning.director import NO_ROOM_S, Director, describe_failure
from genrec.tuning.ray_schedulers import remind, scheduler_of
from genrec.tuning.ray_trial import TrialJob, free_reservations, run_trial
from genrec.tuning.records import DONE, Trial
from genrec.tuning.room import concurrency, need_of
from genrec.tuning.space import config_with

_TRIAL = {"memory": 2.0**20}
"""What a trial's own process reserves, besides its workers: something, because Ray refuses nothing at all. No CPU: the
workers and the reading of data have been counted out to the last one."""

LOOK_S = 2.0
"""Between two looks at the running trials."""

CLEANUP_S = 5
"""Tune asks a trial that it stops to end; after so long it ends the process."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the books are the director's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that ends without a metric has said why
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(CLEANUP_S),  # a trial that is cut off would wait minutes for its workers
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def machines() -> list[dict[str, float]]:
    """Resources of the machines of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def run_sweep(director: Director, base: ExperimentConfig, job: TrialJob, show: Callable[[], None]) -> None:
    """Runs the trials that are not done until there are no more, or the budget is used up.

    `base` has paths that hold on every machine. `show` is called every few seconds. Ray must be up.
    """
    os.environ.update(_ENVIRONMENT)
    spec, folder = director.spec, director.folder
    shutil.rmtree(folder.scratch_path, ignore_errors=True)
    director.open()
    scheduler = scheduler_of(spec, base)
    remind(scheduler, [trial for trial in director.sweep.trials if trial.state in ("finished", "stopped")])
    director.sweep.max_concurrent = _concurrency(director, base)
    room = _Room(director, base)
    population: dict[str, Any] = {}
    searcher: Searcher | None = None
    if spec.scheduler.name == "pbt":  # Ray's PBT takes no searcher
        waiting = [_asked(trial) for trial in director.all_trials()]
        population = {"job": tune.grid_search(waiting)}
    else:
        waiting = []
        searcher = _Asking(director, room)
    if waiting or searcher is not None:
        tuner = tune.Tuner(
            tune.with_resources(partial(run_trial, job=job), _trial_resources(director)),
            param_space=population,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=1 if searcher is None else -1,
                max_concurrent_trials=None if searcher is None else director.sweep.max_concurrent,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(folder.scratch_path),
                failure_config=tune.FailureConfig(max_failures=spec.budget.retries),
                callbacks=[_Telling(director, show, room)],
                stop=_Budget(director),
                verbose=0,
            ),
        )
        tuner.fit()
    director.close()
    show()
    shutil.rmtree(folder.scratch_path, ignore_errors=True)


def _trial_resources(director: Director) -> dict[str, float]:
    """What a trial's own process reserves. A population has to be known whole before its first comparison, so it is not
    handed out bit by bit: a share of the head node lets as many run as there is room for, and the others wait."""
    if director.spec.scheduler.name != "pbt":
        return _TRIAL
    return {"node:__internal_head__": math.floor(10_000 / director.sweep.max_concurrent) / 10_000}


def _concurrency(director: Director, base: ExperimentConfig) -> int:
    """Trials at a time; every need that the space can ask for counts, so that a later trial finds room as well."""
    keys = {key: d for key, d in director.spec.space.items() if key.startswith(("cluster.", "evaluation.validation"))}
    configs = [base]
    choices = [d.choice or list(d.integer or d.uniform or d.log_uniform or ()) for d in keys.values()]
    for values in islice(product(*choices), 1_000):
        try:
            configs.append(config_with(director.gate.base, dict(zip(keys, values, strict=True)), "a trial"))
        except ConfigError:
            continue  # rejected when its turn comes
    wanted = director.spec.max_concurrent
    return concurrency([need_of(config, DATA_CPUS) for config in configs], machines(), wanted)


def _asked(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.id, "params": trial.settings, "num_parameters": trial.num_parameters}


def _name(trial: Any) -> str:
    return str(trial.config["job"]["trial"])


class _Room:
    """Whether the machines that are left hold a trial. Some may be lost on the way, and come back."""

    def __init__(self, director: Director, base: ExperimentConfig) -> None:
        self._director = director
        self._base = base
        self._most_cpus = self._most_gpus = 0.0

    def look(self) -> None:
        """Tells the director whether any of the running trials, or the next one where none runs, finds room."""
        configs = [
            trial_config(self._director.folder, self._director.gate.base, trial.number, trial.settings)
            for trial in self._director.running()
        ]
        if not configs and not self.is_lost():
            self._director.take_room(None)
            return
        problems = [self._problem(config) for config in configs or [self._base]]
        longest_s = max(config.placement.wait_s for config in configs or [self._base])
        self._director.take_room(None if None in problems else problems[0], max(NO_ROOM_S, longest_s))

    def is_lost(self) -> bool:
        """Whether machines are gone, and the base config has no room on those that are left. With `placement.wait_s`
        machines come when they are asked for, which the director's gate does."""
        if self._base.placement.wait_s:
            return False
        machines = alive_machines()
        cpus, gpus = sum(machine.cpus for machine in machines), sum(machine.gpus for machine in machines)
        fewer = cpus < self._most_cpus or gpus < self._most_gpus
        self._most_cpus, self._most_gpus = max(self._most_cpus, cpus), max(self._most_gpus, gpus)
        return fewer and self._problem(self._base) is not None

    def _problem(self, config: ExperimentConfig) -> str | None:
        try:
            check_room(config, alive_machines())
        except ConfigError as error:
            return reason_of(error)
        return None


class _Unpickled:
    """Ray saves what it is given; nothing is read from that, so this process's own objects stay out of it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asking(_Unpickled, Searcher):  # type: ignore[misc]
    """Tune asks for the next trial."""

    def __init__(self, director: Director, room: "_Room") -> None:
        super().__init__()
        self._director = director
        self._room = room

    def suggest(self, trial_id: str) -> Any:
        """The next trial's job; FINISHED when there are no more; None is to be asked again, as long as machines that
        were there are gone: the next trials would all be rejected for want of them."""
        if self._room.is_lost():
            self._room.look()  # Tune sleeps in here as long as nothing runs
            if self._director.must_end() is None:
                return None
        trial = self._director.next_trial()
        return Searcher.FINISHED if trial is None else {"job": _asked(trial)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: `_Telling` hears it too, with the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """An empty file, which Ray moves about."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see the module."""


class _Telling(_Unpickled, Callback):  # type: ignore[misc]
    """Tune tells what happened to trials."""

    def __init__(self, director: Director, show: Callable[[], None], room: "_Room") -> None:
        self._director = director
        self._show = show
        self._room = room
        self._looked_s = 0.0
        self._leaving: dict[str, float] = {}
        """Trials that have ended, and when."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks at the running trials now and then."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self._director.look()
            self._room.look()
            free_orphans()
            self._show()
            for trial in [trial for trial, ended_s in self._leaving.items() if now - ended_s > 2 * CLEANUP_S]:
                del self._leaving[trial]
                free_reservations(self._director.folder, trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, or was stopped by the scheduler."""
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed, as often as `budget.retries` allows."""
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._end(trial, "its process ended" if error is None else describe_failure(error))

    def _end(self, trial: Any, error: str | None) -> None:
        found = self._director.sweep.trials[int(trial.custom_trial_name or str(trial))]
        self._leaving[found.id] = time.monotonic()
        if found.state not in DONE:
            self._director.ended(found, error)


class _Budget(_Unpickled, Stopper):  # type: ignore[misc]
    """Ends all trials when the budget is used up, or the machines for them are gone."""

    def __init__(self, director: Director) -> None:
        self._director = director

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked in every round of Tune's loop."""
        return self._director.must_end() is not None
