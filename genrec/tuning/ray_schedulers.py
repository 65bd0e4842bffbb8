"""Ray Tune's schedulers, set up for a sweep, and told what happened before the command was started again."""

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from genrec.config import ExperimentConfig
from genrec.tuning.config import AshaScheduler, Domain, MedianScheduler, PbtScheduler, SweepConfig
from genrec.tuning.records import Trial
from genrec.tuning.space import draw_value, rounded

TIME = "epoch"
"""What schedulers count: trials with other batches then get the same data before they are compared."""

MOST_EPOCHS = 1_000
"""The last rung where the base says steps, not epochs."""


class _MedianStopping(MedianStoppingRule):  # type: ignore[misc]
    """Ray's rule, which would take a trial that failed before its first validation for a result."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._metric in result and self._time_attr in result:
            super().on_trial_complete(tune_controller, trial, result)


def scheduler_of(sweep: SweepConfig, base: ExperimentConfig) -> TrialScheduler:
    """The scheduler of a sweep; it compares trials by the first metric."""
    chosen, judged = sweep.scheduler, {"metric": sweep.metrics[0], "mode": sweep.modes[0], "time_attr": TIME}
    if isinstance(chosen, AshaScheduler):
        return AsyncHyperBandScheduler(
            **judged,
            max_t=max(base.train.max_epochs or MOST_EPOCHS, chosen.grace_epochs),
            grace_period=chosen.grace_epochs,
            reduction_factor=chosen.reduction,
            stop_last_trials=False,  # they end by themselves, and are evaluated then
        )
    if isinstance(chosen, MedianScheduler):
        return _MedianStopping(
            **judged,
            grace_period=chosen.grace_epochs,
            min_samples_required=chosen.min_trials,
            min_time_slice=float("inf"),  # it would pause trials to let others catch up, and each pause is a start
        )
    if isinstance(chosen, PbtScheduler):
        return _population(sweep, chosen, judged)
    return FIFOScheduler()


def remind(scheduler: TrialScheduler, trials: Sequence[Trial]) -> None:
    """Tells a scheduler of trials that were done before this start, in its own words, so that it compares with them.

    Successive halving is told all of a trial: it hears them in another order now, and would have stopped others. The
    median rule takes nothing of a trial after it has said stop.
    """
    if type(scheduler) is FIFOScheduler or isinstance(scheduler, PopulationBasedTraining):
        return  # the one compares nothing; of a population, those that are done are no part any more
    controller = SimpleNamespace(get_live_trials=list)
    for trial in trials:
        if not trial.progress.history:
            continue
        stand_in = _StandIn(f"before-{trial.id}")
        scheduler.on_trial_add(controller, stand_in)
        for entry in trial.progress.history:
            decision = scheduler.on_trial_result(controller, stand_in, dict(entry))
            if decision == TrialScheduler.STOP and isinstance(scheduler, MedianStoppingRule):
                break
        scheduler.on_trial_complete(controller, stand_in, dict(entry))


class _StandIn:
    """What a scheduler knows a trial of an earlier start by."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _population(sweep: SweepConfig, chosen: PbtScheduler, judged: dict[str, Any]) -> PopulationBasedTraining:
    random.seed(sweep.seed)  # Ray draws from the process's own generator
    generator = np.random.default_rng([sweep.seed, 0x9B7])
    mutations = {key: _mutation(domain, generator) for key, domain in sweep.space.items()}
    return PopulationBasedTraining(
        **judged,
        perturbation_interval=chosen.interval_epochs,
        hyperparam_mutations={"job": {"params": mutations}},
        quantile_fraction=chosen.quantile,
        resample_probability=chosen.resample,
        custom_explore_fn=_Bounds(sweep.space),
        log_config=False,
    )


def _mutation(domain: Domain, generator: np.random.Generator) -> list[Any] | Callable[[], Any]:
    return domain.choice if domain.choice is not None else lambda: draw_value(domain, generator)


class _Bounds:
    """Keeps what Ray has multiplied by 0.8 or 1.2 inside of the space."""

    def __init__(self, space: dict[str, Domain]) -> None:
        self.space = space

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        params = config["job"]["params"]
        for key, domain in self.space.items():
            bounds = domain.uniform or domain.log_uniform
            if bounds is not None:
                params[key] = rounded(float(params[key]), *bounds)
            elif domain.integer is not None:
                low, high = domain.integer
                params[key] = min(max(int(params[key]), low), high)
        return config
