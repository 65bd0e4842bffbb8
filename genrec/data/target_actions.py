"""Which events are worth predicting: those whose action is wanted (completed streams, say, and not skips), and how
much each of them counts in the loss.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig
from genrec.config_losses import MAX_TARGET_WEIGHT
from genrec.data.manifest import Manifest
from genrec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TargetRule:
    """What a training run makes of the events that come next."""

    actions: tuple[int, ...] | None = None
    """Codes of the actions that are predicted; None is all."""
    weights: tuple[float, ...] | None = None
    """Weight of a target by the code of its action; None is 1 for all."""
    value_weights: bool = False
    """Whether a target weighs its value, too."""
    next_events: bool = False
    """Whether batches say what the next event is, whatever its action: for heads."""
    next_values: bool = False
    """Whether they say its value too: for the dwell head."""

    def chosen(self, actions: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which events are predicted, by their actions [num_events]."""
        if self.actions is None:
            return np.ones(len(actions), dtype=np.bool_)
        return np.isin(actions, np.array(self.actions, dtype=np.uint8))

    @property
    def reads_values(self) -> bool:
        """Whether the events' values are asked for."""
        return self.next_values or self.value_weights

    def weights_of(
        self, actions: npt.NDArray[np.uint8], values: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32] | None:
        """What events would weigh as targets, by their actions and values [num_events]; None is 1 for all.

        A value is cut to 0 .. `MAX_TARGET_WEIGHT`; where it is unknown, it is 1.
        """
        weights = None if self.weights is None else np.array(self.weights, dtype=np.float32)[actions]
        if not self.value_weights or values is None:
            return weights
        of_values = np.where(np.isfinite(values), values, np.float32(1)).clip(0, MAX_TARGET_WEIGHT)
        return of_values if weights is None else weights * of_values


EVERY_TARGET = TargetRule()


def target_rule(config: ExperimentConfig, manifest: Manifest) -> TargetRule:
    """The rule of a config on a prepared set; raises ConfigError when the set lacks an action that it names."""
    return TargetRule(
        actions=target_codes(config.sequence.target_actions, manifest),
        weights=weights_by_code(config.loss.action_weights, manifest),
        value_weights=config.loss.value_weights,
        next_events=bool(config.heads.weights),
        next_values=config.heads.dwell is not None,
    )


def target_codes(names: Sequence[str] | None, manifest: Manifest) -> tuple[int, ...] | None:
    """Codes of the named actions of a prepared set; None, for every action, without names.

    Raises ConfigError when the set does not have one of them.
    """
    if names is None:
        return None
    return tuple(sorted(_code_of(name, "sequence.target_actions", manifest) for name in names))


def weights_by_code(weights: Mapping[str, float] | None, manifest: Manifest) -> tuple[float, ...] | None:
    """Weights of a prepared set's actions by their codes, from 0 (no action); None, for 1 everywhere, without weights.

    An action that is not named weighs 1. Raises ConfigError when the set does not have one of those that are.
    """
    if weights is None:
        return None
    by_code = [1.0] * (len(manifest.actions) + 1)
    for name, weight in weights.items():
        by_code[_code_of(name, "loss.action_weights", manifest)] = weight
    return tuple(by_code)


def _code_of(name: str, setting: str, manifest: Manifest) -> int:
    if name in manifest.actions:
        return manifest.actions.index(name) + 1
    close = difflib.get_close_matches(name, manifest.actions, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(manifest.actions) or 'none'}."
    raise ConfigError(f"{setting} has {name!r}, which is no action of the prepared set; {hint}")
