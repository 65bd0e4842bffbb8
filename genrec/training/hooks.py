"""What happens between steps: log, validate, checkpoint. The order of the list is the order they run in."""

import hashlib
import logging
import math
import shutil
import signal
import tempfile
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.errors import PreemptedError, StorageError
from genrec.training.background_validation import BackgroundValidationHook
from genrec.training.checkpoint import (
    CheckpointInfo,
    config_hash,
    prune_checkpoints,
    upload_checkpoint,
    write_checkpoint,
)
from genrec.training.checkpoint_store import checkpoint_name
from genrec.training.context import WorkerContext
from genrec.training.engine import Engine
from genrec.training.inline_validation import RefitHook, Validation, ValidationHook
from genrec.training.meters import StepMeter, peak_memory_bytes
from genrec.training.optim import learning_rate
from genrec.training.preemption import Notice
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard
from genrec.training.tracking import Tracker
from genrec.training.validations import read_results
from genrec.training.versions import installed_versions

logger = logging.getLogger(__name__)

_NOTABLE_WAIT_S = 1.0


class LogHook:
    """Writes a `train` line every `train.log_every_steps` steps."""

    def __init__(
        self, config: ExperimentConfig, engine: Engine, context: WorkerContext, tracker: Tracker | None, end_step: int
    ) -> None:
        self.config = config
        self.engine = engine
        self.context = context
        self.tracker = tracker
        self.end_step = end_step

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`. One small all-reduce a line: loss sums and waits of all workers."""
        if state.step % self.config.train.log_every_steps and state.step < self.end_step:
            return
        seconds = meter.elapsed_s()
        mine = [meter.loss_sum, meter.wait_s, *meter.tasks.values()]  # the same tasks on every worker
        sums = self.context.all_reduce(torch.tensor(mine, dtype=torch.float64))
        norm = self.engine.gradient_norm()
        if self.context.measure is not None and meter.num_targets:
            self.context.measure(
                {
                    "step": state.step,
                    "loss": float(sums[0]) / meter.weight,
                    "events_per_s": meter.num_targets / seconds,
                    "data_wait_fraction": meter.wait_s / seconds,
                    "steps": meter.num_steps,
                }
            )
        if self.tracker is not None and meter.num_targets:  # 0 where every update was left out
            self.tracker.log(
                {
                    "kind": "train",
                    "step": state.step,
                    "epoch": round(state.epochs_done, 6),
                    "time_s": time.time(),
                    "elapsed_s": round(state.elapsed_s, 3),
                    "loss": float(sums[0]) / meter.weight,
                    **{f"loss_{name}": float(s) / meter.weight for name, s in zip(meter.tasks, sums[2:], strict=True)},
                    "lr": learning_rate(state.step - 1, self.end_step, self.config.optimizer),
                    "gradient_norm": norm if norm is not None and math.isfinite(norm) else None,
                    "events_per_s": round(meter.num_targets / seconds, 1),
                    "data_wait_fraction": round(float(sums[1]) / self.context.workers / seconds, 5),
                    "eta_s": round(seconds / meter.num_steps * (self.end_step - state.step), 1),
                    "memory_bytes": peak_memory_bytes(self.context.device),
                }
            )
        meter.reset()


class CheckpointHook:
    """Saves a checkpoint every `train.checkpoint_every_steps` steps, or with every validation, and at the end.

    With `train.keep_best` every validation saves one too, so that the best has one; a background one always does. What
    must see the weights happens between two steps; digests, upload and pruning go on beside the next ones. A save first
    waits for the upload of the one before, so at most one is under way, and what was saved before that one is complete
    on all workers.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        engine: Engine,
        context: WorkerContext,
        manifest: Manifest,
        validation: Validation,
    ) -> None:
        self.config = config
        self.engine = engine
        self.context = context
        self.manifest = manifest
        self.validation = validation
        self._saved_step: int | None = None
        self._upload: Future[None] | None = None
        run = hashlib.sha256(str(context.run.root.absolute()).encode()).hexdigest()[:12]
        self._draft_prefix = f"genrec-checkpoint-{run}-{context.rank:05d}-"
        for draft in Path(tempfile.gettempdir()).glob(f"{self._draft_prefix}*"):
            shutil.rmtree(draft, ignore_errors=True)  # of a worker that was killed while it saved

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`."""
        every = self.config.train.checkpoint_every_steps
        ends = state.stop_reason is not None or state.step == self.validation.end_step
        due = every is not None and state.step % every == 0
        with_each = (
            every is None or self.config.train.keep_best > 0 or self.config.evaluation.validation == "background"
        )
        due = due or (with_each and self.validation.due(state))
        if due or ends:
            self.save(state, meter)
        if ends:
            self.finish(meter)

    def save(self, state: TrainState, meter: StepMeter) -> None:
        """Saves a checkpoint of the step just done, once; every worker calls it.

        Raises on every worker what the upload of the checkpoint before has raised on one.
        """
        if self._saved_step == state.step:
            return
        started_at = time.perf_counter()
        self._wait_for_upload()
        folder = Path(tempfile.mkdtemp(prefix=self._draft_prefix))
        try:
            write_checkpoint(folder, self.engine, self._info(state), self.context.rank)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        name = checkpoint_name(state.step)
        self._upload = self.context.publish(
            folder, name, partial(self._upload_files, folder, name), state.awaits_validation
        )
        self._saved_step = state.step
        if self.config.train.checkpoint_upload == "sync":
            self._wait_for_upload()
        meter.excluded_s += time.perf_counter() - started_at

    def finish(self, meter: StepMeter) -> None:
        """Returns when what was saved is complete; every worker calls it when training ends."""
        started_at = time.perf_counter()
        self._wait_for_upload()
        self._prune()
        meter.excluded_s += time.perf_counter() - started_at

    def drain(self) -> None:
        """Lets this worker's upload come to its end when training has failed; asks nothing of the other workers."""
        if self._upload is not None and (error := self._upload.exception()) is not None:
            logger.warning("%s", error)
        self._upload = None

    def _upload_files(self, folder: Path, name: str) -> None:
        self._prune()  # all workers have waited for the checkpoint before, so it is complete
        if self.context.rank == 0:
            self.context.run.push()  # before it counts: metrics and export of the steps that it makes final
        upload_checkpoint(self.context.store, folder, name, self.context.rank)

    def _prune(self) -> None:
        if self.context.rank == 0:
            train = self.config.train
            results = read_results(self.context.run.validations_path)
            prune_checkpoints(self.context.store, train.keep_checkpoints, train.keep_best, results)

    def _wait_for_upload(self) -> None:
        """Waits for the uploads of all workers; when one has failed, all raise, so that none waits for it later."""
        if self._upload is None:
            return
        started_at = time.perf_counter()
        error = self._upload.exception()
        self._upload = None
        waited_s = time.perf_counter() - started_at
        if waited_s >= _NOTABLE_WAIT_S and self.config.train.checkpoint_upload == "async":
            logger.warning(
                "Training waited %.1f s for the upload of a checkpoint to %s; with a larger "
                "train.checkpoint_every_steps it would not.",
                waited_s,
                self.context.store,
            )
        failed = self.context.all_reduce(torch.tensor([float(error is not None)], dtype=torch.float64))
        if error is not None:
            raise error
        if failed.item():
            raise StorageError(
                f"Another worker could not upload its part of a checkpoint to {self.context.store}; its own message "
                "says why. Checkpoints before it still count: run the same command to go on from the last one."
            )

    def _info(self, state: TrainState) -> CheckpointInfo:
        values = self.config.model_dump(mode="json")
        return CheckpointInfo(
            step=state.step,
            state=state,
            content_hash=self.manifest.content_hash,
            workers=self.context.workers,
            engine=values["engine"],
            versions=installed_versions(),
            config=values,
            config_hash=config_hash(values),
            time_s=time.time(),
            semantic_ids=None if (ids := self.engine.model.semantic_ids) is None else ids.digest,
        )


class PreemptionHook:
    """Ends a run that has been told to leave, with a checkpoint of the step just done. It runs last."""

    def __init__(self, guard: StepGuard, notice: Notice, checkpoint: CheckpointHook) -> None:
        self.guard = guard
        self.notice = notice
        self.checkpoint = checkpoint

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`. Raises PreemptedError, on all workers alike."""
        told = self.guard.told_to_leave
        if self.guard.asks_cluster and not told:
            told = self.notice.ask_cluster()
        if not told:
            return
        self.checkpoint.save(state, meter)
        self.checkpoint.finish(meter)
        raise PreemptedError(
            f"Told to leave: the run is saved before step {state.step}, and the same command goes on from there.",
            self.notice.signal_number or signal.SIGTERM,
        )


def default_hooks(
    config: ExperimentConfig,
    engine: Engine,
    context: WorkerContext,
    tracker: Tracker | None,
    manifest: Manifest,
    guard: StepGuard,
    state: TrainState,
) -> tuple[LogHook, Validation, CheckpointHook]:
    """The hooks of a training run that goes on from `state`, in the order they run in."""
    log = LogHook(config, engine, context, tracker, context.end_step)
    validation: Validation
    if config.refits:
        validation = RefitHook(config, engine, context, manifest, context.end_step)
    elif config.evaluation.validation == "background":
        validation = BackgroundValidationHook(config, context, tracker, guard, state)
    else:
        validation = ValidationHook(config, engine, context, tracker, manifest, context.end_step)
    return log, validation, CheckpointHook(config, engine, context, manifest, validation)
