"""Progress of a run: the cursor and what the hooks remember. It is saved in every checkpoint."""

from dataclasses import dataclass, field


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
    ends_epoch: bool = field(default=False)
    """Whether the step just done was the last of its epoch."""
    stop_reason: str | None = None
