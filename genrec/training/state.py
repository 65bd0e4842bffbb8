"""Progress of a run: the cursor and what the hooks remember. It is saved in every checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TrainState:
    """Where a run stands. `step` is the next step to train, never the last one trained."""

    step: int = 0
    epochs_done: float = 0.0
    elapsed_s: float = 0.0
    """Seconds inside the training loop over all restarts, validation included."""
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_gain: int = 0
    tracker_id: str | None = None
    metric: float | None = None
    """Validation metric after exactly this step; None when this step was not followed by a validation, or when that
    goes on in the background: validations.py has its result."""
    awaits_validation: bool = False
    """Whether a background validation of exactly this step's checkpoint was asked for."""
    ends_epoch: bool = field(default=False)
    """Whether the step just done was the last of its epoch."""
    stop_reason: str | None = None
    num_left_out: int = 0
    """Steps before `step` whose update was not applied (step_guard.py)."""


def export_info(state: TrainState, metric: str, content_hash: str, actions: Sequence[str]) -> dict[str, Any]:
    """What an export says about the training behind it; `actions` are the names of the codes 1, 2, ..."""
    return {
        "step": state.step,
        "epoch": round(state.epochs_done, 6),
        "metric": metric,
        "value": state.metric,
        "content_hash": content_hash,
        "actions": list(actions),
    }
