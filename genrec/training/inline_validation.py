"""Validation by the workers themselves, between two steps; and what a refit does in its place.

The background form is in background_validation.py. What is validated and exported is the average of the weights, where
the optimizer keeps one.
"""

import time

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.evaluation.evaluate import EvaluationResult, evaluate
from genrec.inference.export import write_export
from genrec.training.background_validation import BackgroundValidationHook, validation_is_due
from genrec.training.context import WorkerContext
from genrec.training.engine import Engine
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState, export_info
from genrec.training.tracking import Tracker
from genrec.training.weight_average import averaged


class ValidationHook:
    """Validates at the end of every n-th epoch and of the run, exports the best model, stops without progress."""

    def __init__(
        self,
        config: ExperimentConfig,
        engine: Engine,
        context: WorkerContext,
        tracker: Tracker | None,
        manifest: Manifest,
        end_step: int,
    ) -> None:
        self.config = config
        self.engine = engine
        self.context = context
        self.tracker = tracker
        self.manifest = manifest
        self.end_step = end_step

    def due(self, state: TrainState) -> bool:
        """Whether a validation follows the step just done."""
        return validation_is_due(self.config, state, self.end_step)

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`. Metrics are summed over the workers, so all take the same decision."""
        state.metric, state.awaits_validation = None, False
        if not self.due(state):
            return
        started_at = time.perf_counter()
        with averaged(self.engine.average):
            result = self._evaluate()
            metric = result.metrics[self.config.evaluation.metric]
            state.metric = metric
            best = state.best_metric is None or metric > state.best_metric
            if best:
                state.best_metric, state.best_step, state.validations_without_gain = metric, state.step, 0
                export_model(self.config, self.engine, self.context, self.manifest, state)
            else:
                state.validations_without_gain += 1
        patience = self.config.train.patience
        if patience is not None and state.validations_without_gain >= patience:
            state.stop_reason = f"{patience} validations without a better {self.config.evaluation.metric}"
        if self.tracker is not None:
            self.tracker.log(
                {
                    "kind": "validation",
                    "step": state.step,
                    "epoch": round(state.epochs_done, 6),
                    "time_s": time.time(),
                    "elapsed_s": round(state.elapsed_s, 3),
                    "metrics": result.metrics,
                    **({"heads": result.heads} if result.heads else {}),
                    "num_users": result.num_users,
                    "seconds": round(time.perf_counter() - started_at, 3),
                    "best": best,
                }
            )
        meter.excluded_s += time.perf_counter() - started_at

    def _evaluate(self) -> EvaluationResult:
        return evaluate(
            self.engine.model,
            self.config,
            self.manifest,
            "validation",
            rank=self.context.rank,
            world_size=self.context.workers,
            all_reduce=self.context.all_reduce,
            max_users=self.config.evaluation.max_validation_users,
        )


class RefitHook:
    """Takes the place of validation in a refit, which has nothing to validate on: exports the weights of the end."""

    def __init__(
        self, config: ExperimentConfig, engine: Engine, context: WorkerContext, manifest: Manifest, end_step: int
    ) -> None:
        self.config = config
        self.engine = engine
        self.context = context
        self.manifest = manifest
        self.end_step = end_step

    def due(self, state: TrainState) -> bool:
        """Whether a validation would follow the step just done; checkpoints ask."""
        return validation_is_due(self.config, state, self.end_step)

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`."""
        if state.step == self.end_step:
            started_at = time.perf_counter()
            with averaged(self.engine.average):
                export_model(self.config, self.engine, self.context, self.manifest, state)
            meter.excluded_s += time.perf_counter() - started_at


def export_model(
    config: ExperimentConfig, engine: Engine, context: WorkerContext, manifest: Manifest, state: TrainState
) -> None:
    """Publishes the weights as they are; every worker calls it, worker 0 writes."""
    weights = engine.weights()
    if context.rank != 0:
        return
    write_export(
        context.run.export_path,
        dict(weights),
        config,
        at_hand(config.data.prepared) / ITEMS_FILE,
        export_info(state, config.evaluation.metric, manifest.content_hash, manifest.actions),
        engine.model.semantic_ids,
    )


Validation = ValidationHook | BackgroundValidationHook | RefitHook
