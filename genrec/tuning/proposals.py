"""Who says what trial comes next. A proposer knows nothing of Ray; trial 0 is always the base config itself."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genrec.tuning.config import SweepConfig
from genrec.tuning.space import Params, base_params, draws, grid


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a trial that is done: its settings and the values of the sweep's metrics, None if it failed."""

    params: Params
    values: tuple[float, ...] | None


class Proposer(Protocol):
    """Gives the settings of trial 0, 1, ... in this order."""

    def propose(self, number: int, before: Sequence[Params] = ()) -> Params | None:
        """The settings of a trial, which are none of those of the trials `before`; None when there are no more."""
        ...

    def learn(self, number: int, outcome: Outcome) -> None:
        """Takes in what became of a trial; called once for each, in any order."""
        ...


class ListedProposer:
    """A list that is known from the beginning: a grid, random draws, or the settings of a retraining."""

    def __init__(self, listed: Sequence[Params]) -> None:
        self.listed = listed

    def propose(self, number: int, before: Sequence[Params] = ()) -> Params | None:
        """See `Proposer`; what is listed is proposed as it is."""
        return dict(self.listed[number]) if number < len(self.listed) else None

    def learn(self, number: int, outcome: Outcome) -> None:
        """See `Proposer`; a list learns nothing."""


def proposer_of(sweep: SweepConfig, base: Mapping[str, Any]) -> Proposer:
    """The proposer of a sweep."""
    if sweep.searcher.name == "optuna":
        from genrec.tuning.optuna_proposer import OptunaProposer

        return OptunaProposer(sweep, base)
    return ListedProposer(listed_params(sweep, base))


def listed_params(sweep: SweepConfig, base: Mapping[str, Any]) -> list[Params]:
    """All trials of a grid or a random search: the base first, then the others, without the base a second time."""
    first = base_params(sweep, base)
    found = grid(sweep, base) if sweep.searcher.name == "grid" else draws(sweep, base)
    others = (params for params in found if params != first)
    number = sweep.budget.trials
    return [first, *itertools.islice(others, None if number is None else number - 1)]
