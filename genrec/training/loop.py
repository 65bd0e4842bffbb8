"""The training loop: one loop for every model, engine and launcher. Everything optional is a hook."""

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch, MicroBatchId
from genrec.data.stream import Place
from genrec.log_lines import PLACE
from genrec.training.engine import Engine
from genrec.training.meters import StepMeter
from genrec.training.optim import learning_rate
from genrec.training.products import matmul_precision
from genrec.training.state import TrainState
from genrec.training.step_guard import MicroBatchLoss, StepGuard


class Hook(Protocol):
    """Something that happens between steps; every worker calls every hook alike."""

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """Called when step `state.step - 1` is done. Sets `state.stop_reason` to end the run."""
        ...


def train(
    config: ExperimentConfig,
    engine: Engine,
    batches: Iterable[tuple[Place, Batch]],
    hooks: Sequence[Hook],
    state: TrainState,
    end_step: int,
    guard: StepGuard,
) -> None:
    """Trains from `state.step` until `end_step` or until a hook stops the run; `state` is updated in place.

    `batches` are this worker's micro-batches in order, its share of each step. `guard` says whether a step's update may
    be applied; a step without one still counts as a step.
    """
    accumulation = config.accumulation(guard.context.workers)
    engine.before_update = guard.allows
    meter = StepMeter()
    device = next(engine.model.parameters()).device
    resumed_elapsed_s, started_at = state.elapsed_s, time.perf_counter()
    losses: list[MicroBatchLoss] = []
    tasks: dict[str, float] = {}
    engine.model.train()
    clock = engine.clock
    for place, batch in meter.timed(batches, clock):
        last = len(losses) + 1 == accumulation
        seed_micro_batch(config.seed, batch.micro_batch_id)
        lr = learning_rate(state.step, end_step, config.optimizer)
        clock.switch("to_device")
        with matmul_precision(config):
            loss_sum, parts = engine.micro_step(batch.to(device), lr=lr, last=last)
        losses.append((batch.micro_batch_id, loss_sum))
        for name, part in parts.items():
            tasks[name] = tasks.get(name, 0.0) + part
        if not last:
            continue
        if guard.check(losses):
            meter.loss_sum += sum(loss_sum for _, loss_sum in losses)
            meter.num_targets += batch.step_targets
            meter.weight += batch.step_weight
            meter.add_tasks(tasks)
        else:
            state.num_left_out += 1
        losses.clear()
        tasks.clear()
        meter.num_steps += 1
        state.step += 1
        PLACE.step = state.step
        state.epochs_done, state.ends_epoch = place.epochs_done, place.ends_epoch
        state.elapsed_s = resumed_elapsed_s + time.perf_counter() - started_at
        clock.switch("hooks")
        for hook in hooks:
            hook.after_step(state, meter)
        if state.stop_reason is not None or state.step >= end_step:
            return


def seed_micro_batch(seed: int, micro_batch_id: MicroBatchId | None) -> None:
    """Seeds torch from the run's seed and the micro-batch's id.

    Dropout and negatives then belong to the micro-batch: they are the same on any worker, in any order, and after a
    restart, so no generator state has to be saved.
    """
    epoch, chunk, position = micro_batch_id or (0, 0, 0)
    mixed = seed
    for part in (epoch, chunk, position):
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**64
        mixed ^= mixed >> 31
    torch.manual_seed(mixed % 2**63)
