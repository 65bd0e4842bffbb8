"""Optuna says what trial comes next. The study is made again from the sweep's own records at every start.

The sampler of trial n is seeded with (seed, n), so its settings follow from the trials that were done before it, and
not from how often the command was started.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.errors import ConfigError
from genrec.tuning.config import Domain, OptunaSearch, SweepConfig
from genrec.tuning.proposals import Outcome
from genrec.tuning.space import Params, base_params, draws, is_active, rounded

MAX_REPEATS = 10
"""Settings that the sampler may repeat before a random draw is taken."""


class OptunaProposer:
    """TPE over the sweep's space; conditions are branches of the tree that TPE's name has the T of."""

    def __init__(self, sweep: SweepConfig, base: Mapping[str, Any]) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "searcher optuna needs the package optuna, which is not installed; run `pip install genrec[tune]`, or "
                "use searcher: {name: random}."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self.base = base
        self._optuna = optuna
        direction = optuna.study.StudyDirection
        directions = [direction.MAXIMIZE if mode == "max" else direction.MINIMIZE for mode in sweep.modes]
        self._directions = directions
        self._learned: dict[int, Any] = {}

    def propose(self, number: int, before: Sequence[Params] = ()) -> Params | None:
        """See `Proposer`. Equal settings give equal results; where the sampler only repeats, a random draw is new."""
        if self.sweep.budget.trials is not None and number >= self.sweep.budget.trials:
            return None
        if number == 0:
            return base_params(self.sweep, self.base)
        for attempt in range(MAX_REPEATS):
            params = self._ask(number, attempt)
            if params not in before:
                return params
        return next((params for params in draws(self.sweep, self.base) if params not in before), None)

    def _ask(self, number: int, attempt: int) -> Params:
        startup = self.sweep.searcher.startup_trials if isinstance(self.sweep.searcher, OptunaSearch) else 8
        parts = [self.sweep.seed, number] if attempt == 0 else [self.sweep.seed, number, attempt]
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        study = self.study()
        with warnings.catch_warnings():  # grouping is marked experimental; it is what makes conditions work
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            study.sampler = self._optuna.samplers.TPESampler(
                n_startup_trials=startup, seed=seed, multivariate=True, group=True
            )
        trial = study.ask()
        params: Params = {}
        for key, domain in self.sweep.space.items():
            if is_active(domain, params, self.base):
                params[key] = _suggest(trial, key, domain)
        return params

    def learn(self, number: int, outcome: Outcome) -> None:
        """See `Proposer`. Settings outside of the space, as the base may have, teach nothing."""
        distributions = {
            key: _distribution(self._optuna, self.sweep.space[key]) for key in outcome.params if key in self.sweep.space
        }
        stored = {key: _stored(self.sweep.space[key], outcome.params[key]) for key in distributions}
        if any(value is None or not _holds(self.sweep.space[key], value) for key, value in stored.items()):
            return
        state = self._optuna.trial.TrialState
        self._learned[number] = self._optuna.trial.create_trial(
            params=stored,
            distributions=distributions,
            values=None if outcome.values is None else list(outcome.values),
            state=state.FAIL if outcome.values is None else state.COMPLETE,
        )

    def study(self) -> Any:
        """A study of what has been learned, in the order of the trials' numbers, whenever they ended."""
        study = self._optuna.create_study(directions=self._directions)
        study.add_trials([self._learned[number] for number in sorted(self._learned)])
        return study


def importances(sweep: SweepConfig, outcomes: list[Outcome]) -> dict[str, float]:
    """How much each searched setting decides the first metric (PED-ANOVA, Watanabe et al., 2023); sums to 1.

    Empty where optuna is not installed, or fewer than 4 trials have a value.
    """
    try:
        import optuna
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    except ImportError:
        return {}
    one = sweep.model_copy(update={"metric": sweep.metrics[0], "mode": sweep.modes[0]})
    proposer = OptunaProposer(one, {})
    for number, outcome in enumerate(outcomes):
        if outcome.values is not None:
            proposer.learn(number, Outcome(outcome.params, outcome.values[:1]))
    study = proposer.study()
    if len(study.trials) < 4:
        return {}
    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError, optuna.exceptions.OptunaError):
        return {}  # all trials alike, or no setting that all of them have
    return {key: float(value) for key, value in found.items()}


def _suggest(trial: Any, key: str, domain: Domain) -> Any:
    if domain.choice is not None:
        return domain.choice[trial.suggest_categorical(key, list(range(len(domain.choice))))]
    if domain.integer is not None:
        return trial.suggest_int(key, *domain.integer)
    if domain.log_uniform is not None:
        return rounded(trial.suggest_float(key, *domain.log_uniform, log=True), *domain.log_uniform)
    low, high = domain.uniform or (0.0, 0.0)
    return rounded(trial.suggest_float(key, low, high), low, high)


def _distribution(optuna: Any, domain: Domain) -> Any:
    if domain.choice is not None:  # by place, because Optuna takes no lists as values
        return optuna.distributions.CategoricalDistribution(list(range(len(domain.choice))))
    if domain.integer is not None:
        return optuna.distributions.IntDistribution(*domain.integer)
    if domain.log_uniform is not None:
        return optuna.distributions.FloatDistribution(*domain.log_uniform, log=True)
    return optuna.distributions.FloatDistribution(*(domain.uniform or (0.0, 0.0)))


def _stored(domain: Domain, value: Any) -> Any:
    """A value as Optuna has it: the place in a choice, else the number itself; None when it is not in the choice."""
    if domain.choice is None:
        return value
    return domain.choice.index(value) if value in domain.choice else None


def _holds(domain: Domain, stored: Any) -> bool:
    bounds = domain.uniform or domain.log_uniform or domain.integer
    return bounds is None or (isinstance(stored, int | float) and bounds[0] <= stored <= bounds[1])
