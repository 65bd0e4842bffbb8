"""One worker's run, from an empty process to the final metrics. There is no Ray in it.

Ray Train calls `run` (cluster/ray_train.py), and a single process can call it (training/local.py), so a step can be
debugged in one process and run where Ray is not installed.
"""

import logging
import os
import time
from collections.abc import Iterator

import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.item_types import read_item_types
from genrec.data.item_vectors import vectors_for
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.stream import Place, worker_batches
from genrec.data.target_actions import target_rule
from genrec.data.target_shares import target_shares
from genrec.errors import RunError, StorageError
from genrec.evaluation.popularity import train_counts
from genrec.evaluation.run_evaluation import evaluate_run
from genrec.log_lines import PLACE
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.semantic.run_map import semantic_ids_for
from genrec.training.background_validation import catch_up
from genrec.training.cautions import cautions
from genrec.training.context import WorkerContext
from genrec.training.engine import Engine, build_engine
from genrec.training.hooks import PreemptionHook, default_hooks
from genrec.training.loop import Hook, train
from genrec.training.meters import StepMeter
from genrec.training.preemption import notice_of_process
from genrec.training.profile import ProfileHook
from genrec.training.restore import agreed_checkpoint, restore
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard
from genrec.training.tracking import Tracker, start_tracker
from genrec.training.warm_start import WarmStart, warm_start
from genrec.training.watchdog import Watchdog
from genrec.training.window_log import WindowLogHook

logger = logging.getLogger(__name__)


def run(config: ExperimentConfig, context: WorkerContext) -> None:
    """Trains (or goes on training) the run of `context`, then tests its best model; every worker calls it alike.

    Raises RunError when the memory of a GPU runs out, and as whatever goes wrong in it does.
    """
    try:
        _run(config, context)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"Worker {context.rank} ran out of GPU memory ({str(error).partition(' GPU ')[0]}). `genrec plan CONFIG` "
            "works out what fits: more micro-batches (batch.micro_batches_per_step), another engine.zero_stage, "
            "engine.offload_optimizer, for a decoder model.recompute=block; for an evaluation lower "
            "evaluation.users_per_batch and evaluation.max_scores_bytes."
        ) from error


def _run(config: ExperimentConfig, context: WorkerContext) -> None:
    phases = {"process": time.time() - context.started_at_s}
    PLACE.run, PLACE.rank = context.run.root.name, context.rank
    said = cautions(config, context.end_step)
    if context.rank == 0:
        for caution in said:
            logger.warning("%s", caution)
    set_threads(config, context.workers)
    manifest = load_manifest(config.data.prepared)
    model = new_model(config, manifest)
    phases["model"] = time.time() - context.started_at_s
    checkpoint = agreed_checkpoint(config, context)
    # Before the engine is built: ZeRO shards the weights that it is given.
    warm = None if checkpoint is not None else warm_start(model, config, manifest)
    engine = build_engine(config, model, workers=context.workers, device=context.device)
    phases["engine"] = time.time() - context.started_at_s
    state = restore(checkpoint, config, engine, context, manifest)
    catch_up(state, config, context)
    tracker = start_tracker(config, context.run.metrics_path, state.tracker_id) if context.rank == 0 else None
    if tracker is not None:
        state.tracker_id = tracker.id
    try:
        if state.step < context.end_step and state.stop_reason is None:
            start = StartHook(context, tracker, phases, state.step, warm, said)
            _train(config, engine, context, tracker, manifest, state, start)
    finally:
        if tracker is not None:
            tracker.close()
    if config.evaluation.validation == "background":
        return  # the last ones still run; the driver goes on when they are done (cluster/validation.py)
    _share_export(context)
    evaluate_run(
        context.run,
        config.evaluated_roles,
        rank=context.rank,
        world_size=context.workers,
        all_reduce=context.all_reduce,
        device=context.device,
    )


def _share_export(context: WorkerContext) -> None:
    """Lets workers of all machines read the export that worker 0 has written, where the run is kept at a URI."""
    if context.run.uri is None:
        return
    problem: StorageError | None = None
    if context.rank == 0:
        try:
            context.run.push()
        except StorageError as error:
            problem = error
    failed = context.all_reduce(torch.tensor([float(problem is not None)], dtype=torch.float64))
    if failed.item():
        raise problem or StorageError(f"Worker 0 could not store {context.run.uri}; its own message says why.")
    context.run.pull()


def new_model(config: ExperimentConfig, manifest: Manifest) -> SequenceModel:
    """The model as the run's seed draws it, with what it and its loss know of the data set."""
    torch.manual_seed(config.seed)
    prepared = config.data.prepared
    num_items, num_actions = manifest.num_items, len(manifest.actions)
    vectors, ids = vectors_for(config, prepared), semantic_ids_for(config, num_items)
    model = build_model(config, num_items, read_item_types(prepared), num_actions, vectors, ids)
    model.item_table.num_train_items = manifest.num_train_items or manifest.num_items
    if config.loss.needs_train_counts:
        model.item_table.train_counts = torch.from_numpy(train_counts(prepared, manifest.num_items))
    if config.loss.needs_target_shares and (shares := target_shares(config, manifest)) is not None:
        model.item_table.target_shares = torch.from_numpy(shares)
    return model


def batches_from(
    config: ExperimentConfig, context: WorkerContext, manifest: Manifest, start_step: int
) -> Iterator[tuple[Place, Batch]]:
    """This worker's micro-batches from a step to the end of the run, each with its place."""
    return worker_batches(
        context.tables(start_step),
        start_step=start_step,
        end_step=context.end_step,
        rank=context.rank,
        workers=context.workers,
        parts=config.batch.micro_batches_per_step,
        targets=target_rule(config, manifest),
    )


def _train(
    config: ExperimentConfig,
    engine: Engine,
    context: WorkerContext,
    tracker: Tracker | None,
    manifest: Manifest,
    state: TrainState,
    start: "StartHook",
) -> None:
    batches = batches_from(config, context, manifest, state.step)
    watchdog = Watchdog(context.run, context.rank, config.faults)
    batches = watchdog.watch(batches)
    guard, notice = StepGuard(config, context, state), notice_of_process()
    log, validation, checkpoint = default_hooks(config, engine, context, tracker, manifest, guard, state)
    hooks: list[Hook] = [log, watchdog.pausing(validation), watchdog.pausing(checkpoint)]
    if config.tracking.log_windows:
        windows = WindowLogHook(context.run, context.rank, config.batch.micro_batches_per_step)
        batches = windows.watch(batches)
        hooks.insert(0, windows)  # a checkpoint must not count what is not written down
    if context.profile:
        hooks.append(watchdog.pausing(ProfileHook(engine, context, tracker, state.step)))
    hooks += [start, watchdog.pausing(PreemptionHook(guard, notice, checkpoint))]
    with notice.listening(context.ask_cluster), watchdog.running():
        try:
            train(config, engine, batches, hooks, state, context.end_step, guard)
        except Exception:
            with watchdog.paused():
                checkpoint.drain()
            raise


class StartHook:
    """Writes the `start` line after the first step: when the run (re)started and where the time until then went.

    It runs last, and the meter starts anew after it: waiting for the first chunk is start-up, not data wait.
    """

    def __init__(
        self,
        context: WorkerContext,
        tracker: Tracker | None,
        phases: dict[str, float],
        first_step: int,
        warm: WarmStart | None,
        said: list[str],
    ) -> None:
        self.context = context
        self.tracker = tracker
        self.phases = phases
        self.first_step = first_step
        self.warm = warm
        self.said = said

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`. The phases are differences of seconds since the command, in the order they happened."""
        if state.step != self.first_step + 1:
            return
        wait_s = meter.wait_s
        meter.reset()
        if self.tracker is None:
            return
        moments = [*self.phases.items(), ("first_step", time.time() - self.context.started_at_s)]
        previous = [0.0, *(moment for _, moment in moments)]
        self.tracker.log(
            {
                "kind": "start",
                "step": self.first_step,
                "end_step": self.context.end_step,
                "workers": self.context.workers,
                "launcher": self.context.launcher,
                "resumed": self.first_step > 0,
                "warm_start": None if self.warm is None else self.warm._asdict(),
                "cautions": self.said,
                "time_s": time.time(),
                "first_batch_s": round(wait_s, 3),
                "startup": {n: round(m - p, 3) for (n, m), p in zip(moments, previous, strict=False)},
                "seconds_to_first_step": round(moments[-1][1], 3),
            }
        )


def set_threads(config: ExperimentConfig, workers: int) -> None:
    """Shares this machine's cores among CPU workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.cluster.threads_per_worker or max(1, cores // workers))
