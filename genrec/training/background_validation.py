"""The workers' half of background validations: which checkpoints are validated, and what becomes of the results.

At the end of every n-th epoch the workers save a checkpoint that says `awaits_validation` and train on. A Ray task
(cluster/validation.py) writes its result into validations/ in the run directory. Worker 0 looks there between steps and
takes up what is new: it alone keeps the run's books. All that the other workers must know is when to stop, and that is
told by the sum that every step starts anyway (step_guard.py).
"""

import time

import torch

from genrec.config import ExperimentConfig
from genrec.training.context import WorkerContext
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard
from genrec.training.tracking import Tracker
from genrec.training.validation_books import Books
from genrec.training.validations import protocol_of, read_results, take_up

LOOK_EVERY_S = 2.0
"""How often worker 0 looks for results; a look lists one folder."""


class BackgroundValidationHook:
    """Marks the checkpoints to be validated, takes up results, and stops the run when they get no better."""

    def __init__(
        self,
        config: ExperimentConfig,
        context: WorkerContext,
        tracker: Tracker | None,
        guard: StepGuard,
        state: TrainState,
    ) -> None:
        self.config = config
        self.guard = guard
        self.end_step = context.end_step
        self.books = None if tracker is None else Books(config, context.run, tracker, state)
        self._asked: set[int] = set()
        self._looked_at = 0.0

    def due(self, state: TrainState) -> bool:
        """Whether a validation of the step just done is asked for."""
        return validation_is_due(self.config, state, self.end_step)

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`."""
        state.metric, state.awaits_validation = None, self.due(state)
        patience = self.config.train.patience
        if self.books is not None:
            if state.awaits_validation or time.monotonic() - self._looked_at >= LOOK_EVERY_S:
                self.books.look(state)
                self._looked_at = time.monotonic()
            # Worker 0's word counts: Ray takes its report for all.
            if state.awaits_validation and not self._has_room(self.books, state.step):
                state.awaits_validation = False
                self.books.leave_out(state, len(self._asked))
            self.guard.asks_to_stop = patience is not None and state.validations_without_gain >= patience
        if self.guard.told_to_stop:
            state.stop_reason = f"{patience} validations without a better {self.config.evaluation.metric}"

    def _has_room(self, books: Books, step: int) -> bool:
        """Whether one more validation may wait; the one of the last step always may."""
        self._asked -= books.results.keys()
        if len(self._asked) >= self.config.evaluation.max_waiting_validations and step != self.end_step:
            return False
        self._asked.add(step)
        return True


def validation_is_due(config: ExperimentConfig, state: TrainState, end_step: int) -> bool:
    """Whether a validation follows the step just done: after every n-th epoch, and after the last step."""
    ends_nth_epoch = state.ends_epoch and round(state.epochs_done) % config.train.evaluate_every_epochs == 0
    return state.step == end_step or ends_nth_epoch


def catch_up(state: TrainState, config: ExperimentConfig, context: WorkerContext) -> None:
    """Brings the state of a checkpoint up to results that have come since it was saved, on all workers alike."""
    if context.rank == 0:
        take_up(state, read_results(context.run.validations_path), protocol_of(config.model_dump(mode="json")))
    best = [state.best_metric or 0.0, -1 if state.best_step is None else state.best_step]
    mine = [*best, state.validations_without_gain] if context.rank == 0 else [0.0, 0.0, 0.0]
    metric, step, worse = context.all_reduce(torch.tensor(mine, dtype=torch.float64)).tolist()
    if step >= 0:
        state.best_metric, state.best_step, state.validations_without_gain = metric, int(step), int(worse)
