"""The seam between the loop and "how to do a step": DeepSpeed, or plain PyTorch. DeepSpeed is spoken here alone.

Both engines give the same gradient: `micro_step` adds a micro-batch's share of the global step, normalised by the
targets of the *whole* step (by their weights, added up), so neither the number of workers nor the packing changes the
result.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from genrec.config import AutoConfig, DeepSpeedConfig, ExperimentConfig, TorchConfig
from genrec.data.batch import Batch
from genrec.errors import ConfigError, RunError
from genrec.models.base import LossSum, SequenceModel
from genrec.training.clock import StepClock, time_collectives
from genrec.training.deepspeed_setup import import_deepspeed, limit_waits, load_adam_op
from genrec.training.optim import MixedOptimizer, apply_settings, build_optimizer, set_learning_rate
from genrec.training.universal import (
    UniversalState,
    fill_module,
    fill_optimizer,
    fill_zero_1_2,
    fill_zero_3,
    only_weights,
)
from genrec.training.weight_average import WeightAverage

TAG = "engine"
"""Name of DeepSpeed's folder inside a checkpoint."""


class MicroLoss(NamedTuple):
    """The loss of a micro-batch, and those of its tasks where it has several; the step's weight divides them all.

    The loss is the sum of the tasks', each times its factor.
    """

    loss_sum: float
    parts: dict[str, float]


class Engine(Protocol):
    """What the loop asks of an engine. Every method is called by all workers alike."""

    model: SequenceModel
    before_update: Callable[[float | None], bool]
    """Asked once a step, by all workers alike, with the gradient's norm; False leaves weights and optimizer alone."""
    average: WeightAverage | None
    """The running average of the weights, updated with every applied update; None without `optimizer.ema_decay`."""
    clock: StepClock
    """Is told which part of a step begins; stands still unless a run is measured."""
    inner_optimizer: torch.optim.Optimizer
    """What steps, inside DeepSpeed's own: its state is this worker's part."""

    def micro_step(self, batch: Batch, *, lr: float, last: bool) -> MicroLoss:
        """Forward and backward of one micro-batch, and the optimizer step when it is the `last`; the loss."""
        ...

    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping; None when the engine did not compute it."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """All weights on CPU in fp32 (rank 0; other workers may get an empty mapping)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes this worker's part of the weights and the optimizer state into `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, by the same number of workers."""
        ...

    def load_universal(self, state: UniversalState) -> None:
        """Restores a checkpoint of any topology; every worker takes its own part."""
        ...


def build_engine(config: ExperimentConfig, model: SequenceModel, *, workers: int, device: torch.device) -> Engine:
    """The engine that `config.engine` names; raises ConfigError or RunError when it cannot run here."""
    engine = config.engine
    if isinstance(engine, TorchConfig):
        return TorchEngine(config, model, engine, workers=workers, device=device)
    if isinstance(engine, AutoConfig):
        raise ConfigError("engine.name=auto is resolved where a run is opened; train with `genrec train`.")
    return DeepSpeedEngine(config, model, engine, workers=workers, device=device)


class TorchEngine:
    """Plain PyTorch: every worker holds everything, gradients are summed over the workers once a step."""

    def __init__(
        self, config: ExperimentConfig, model: SequenceModel, engine: TorchConfig, *, workers: int, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.workers = workers
        self.device = device
        self.settings = config.optimizer
        self.autocast = engine.precision == "bf16"
        self.optimizer = self.inner_optimizer = build_optimizer(self.model, config.optimizer)
        self.before_update: Callable[[float | None], bool] = _always
        self.average = _average_of(self.model, config)
        self.clock = StepClock(device)
        self._norm: float | None = None

    def micro_step(self, batch: Batch, *, lr: float, last: bool) -> MicroLoss:
        """See `Engine`."""
        self.clock.switch("forward")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(batch)
        loss_sum = loss.loss_sum
        self.clock.switch("backward")
        (loss_sum / batch.step_weight * _nan_unless_finite(loss_sum)).backward()
        if last:
            self._step(lr)
        self.clock.switch("other")
        return _micro_loss(loss)

    def _step(self, lr: float) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.workers > 1:
            self.clock.switch("communication")
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            parts = torch.split(flat, [g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        self.clock.switch("optimizer")
        limit = self.settings.gradient_clipping or float("inf")
        self._norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        set_learning_rate(self.optimizer, lr)
        if self.before_update(self._norm):
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> float | None:
        """See `Engine`."""
        return self._norm

    def weights(self) -> Mapping[str, Tensor]:
        """See `Engine`."""
        return {name: t.detach().float().cpu() for name, t in self.model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """See `Engine`; every worker holds the same, so rank 0 writes."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(
                {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "torch.pt"
            )
        _save_beside(folder, self.average, self.optimizer)

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        state = torch.load(folder / "torch.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        apply_settings(self.optimizer, self.settings)
        _load_beside(folder, self.average, self.optimizer)

    def load_universal(self, state: UniversalState) -> None:
        """See `Engine`."""
        fill_module(self.model, state)
        fill_optimizer(self.optimizer, self.model, state)
        _load_beside(state.checkpoint, self.average, self.optimizer)


class DeepSpeedEngine:
    """DeepSpeed with ZeRO 0 to 3."""

    def __init__(
        self,
        config: ExperimentConfig,
        model: SequenceModel,
        engine: DeepSpeedConfig,
        *,
        workers: int,
        device: torch.device,
    ) -> None:
        deepspeed = import_deepspeed(device)
        if engine.offload_optimizer:
            load_adam_op(deepspeed)
        singly = engine.zero_stage == 3
        optimizer = None if engine.offload_optimizer else build_optimizer(model, config.optimizer, singly=singly)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model.to(device),
            optimizer=optimizer,
            model_parameters=list(model.parameters()) if optimizer is None else None,
            config=deepspeed_config(config, engine, workers=workers),
        )
        limit_waits(self._engine, config.cluster.collective_timeout_s)
        self.model: SequenceModel = self._engine.module
        self._settings = config.optimizer
        self._inner = optimizer
        self._scale = workers * config.accumulation(workers)
        self._zero_stage = engine.zero_stage
        self.clock = StepClock(device)
        time_collectives(deepspeed.comm.comm.cdb, self.clock)
        self.before_update: Callable[[float | None], bool] = _always
        self.average = _average_of(self.model, config)
        self._verdict: bool | None = None
        self._norm: float | None = None
        self._hidden: list[tuple[torch.nn.Parameter, Tensor | None]] = []
        self.inner_optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        self.inner_optimizer.register_step_pre_hook(self._before_inner_step)
        self.inner_optimizer.register_step_post_hook(self._after_inner_step)

    def micro_step(self, batch: Batch, *, lr: float, last: bool) -> MicroLoss:
        """See `Engine`. DeepSpeed averages over workers and micro-batches; `_scale` undoes both."""
        self.clock.switch("forward")
        loss = self._engine(batch)
        loss_sum = loss.loss_sum
        self.clock.switch("backward")
        self._engine.backward(loss_sum * (self._scale / batch.step_weight) * _nan_unless_finite(loss_sum))
        self.clock.switch("optimizer")
        if last:
            set_learning_rate(self._optimizer, lr)
            self._verdict, self._norm = None, self._norm_of_whole_gradients()
        self._engine.step()
        if last and self._verdict is None:  # the gradient is not finite, and DeepSpeed has left the step out itself
            self._norm = float("inf")
            self.before_update(self._norm)
        if last and self._verdict and self.average is not None:
            self.average.update()
        self.clock.switch("other")
        return _micro_loss(loss)

    def _norm_of_whole_gradients(self) -> float | None:
        """The norm where DeepSpeed computes none: at stage 0 in fp32, where every worker holds the whole gradient."""
        if hasattr(self._engine.optimizer, "_global_grad_norm"):
            return None
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))

    def _before_inner_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Hides the gradients from the optimizer inside DeepSpeed's if the update must not be applied.

        It runs when the gradient is reduced and its norm known; ZeRO calls it several times a step, each time for a
        part of the weights. AdamW leaves a weight without gradient as it is, with its moments and without decay.
        """
        if self._verdict is None:
            if self._norm is None:
                self._norm = float(self._engine.optimizer._global_grad_norm)
            self._verdict = self.before_update(self._norm)
        if not self._verdict:
            self._hidden = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
            for parameter, _gradient in self._hidden:
                parameter.grad = None

    def _after_inner_step(self, *_: object) -> None:
        """Puts hidden gradients back, because some are buffers that DeepSpeed uses again."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden = []

    def gradient_norm(self) -> float | None:
        """See `Engine`."""
        return self._norm

    def weights(self) -> Mapping[str, Tensor]:
        """See `Engine`; stage 3 gathers one weight after another, so never more than one is whole."""
        if self._zero_stage < 3:
            return {name: t.detach().float().cpu() for name, t in self.model.state_dict().items()}
        import deepspeed

        gathered: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if dist.get_rank() == 0:
                    gathered[name] = parameter.detach().float().cpu().clone()
        saved = self.model.state_dict().keys()  # frozen vectors of items, say, are not
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        gathered.update((name, b.detach().cpu()) for name, b in buffers.items() if dist.get_rank() == 0)
        return gathered

    def save(self, folder: Path) -> None:
        """See `Engine`. The folder is this worker's own, so each worker makes DeepSpeed's folder itself."""
        (folder / TAG).mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        _save_beside(folder, self.average, self._inner)

    def load(self, folder: Path) -> None:
        """See `Engine`. DeepSpeed answers a missing file with None and a warning; here it is an error."""
        with only_weights():
            path, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise RunError(f"DeepSpeed found no checkpoint in {folder}; delete that folder to use the one before it.")
        apply_settings(self._optimizer, self._settings)
        _load_beside(folder, self.average, self._inner)

    def load_universal(self, state: UniversalState) -> None:
        """See `Engine`."""
        if self._zero_stage == 3:
            fill_zero_3(self._engine.optimizer, self.model, state)
        elif self._zero_stage > 0:
            fill_zero_1_2(self._engine.optimizer, self.model, state)
        else:
            fill_module(self.model, state)
            fill_optimizer(self._optimizer, self.model, state)
        _load_beside(state.checkpoint, self.average, self._inner)


def deepspeed_config(config: ExperimentConfig, engine: DeepSpeedConfig, *, workers: int) -> dict[str, Any]:
    """DeepSpeed's dictionary. Clipping is always explicit, because DeepSpeed's own default clips at 1.0."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # one Ray Data row is one micro-batch
        "gradient_accumulation_steps": config.accumulation(workers),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
    }
    if engine.offload_optimizer:
        o = config.optimizer
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        values["optimizer"] = {
            "type": "AdamW",
            "params": {"lr": o.lr, "betas": [o.beta1, o.beta2], "weight_decay": o.weight_decay},
        }
    return values


def _nan_unless_finite(loss_sum: Tensor) -> Tensor:
    """1.0, or NaN where the loss is NaN or Inf: as a factor it makes every gradient NaN, and all workers see it in the
    norm. It costs no wait for the device."""
    loss_sum = loss_sum.detach()
    return 1.0 + (loss_sum - loss_sum)


def _micro_loss(loss: LossSum) -> MicroLoss:
    return MicroLoss(float(loss.loss_sum.detach()), {name: float(part) for name, part in loss.parts.items()})


def _average_of(model: SequenceModel, config: ExperimentConfig) -> WeightAverage | None:
    decay = config.optimizer.ema_decay
    return None if decay is None else WeightAverage(model, decay)


def _save_beside(folder: Path, average: WeightAverage | None, optimizer: object) -> None:
    """Writes what a checkpoint holds beside weights and moments: whole, and alike for every engine."""
    if average is not None:
        average.save(folder)
    if isinstance(optimizer, MixedOptimizer):
        optimizer.save(folder)


def _load_beside(folder: Path, average: WeightAverage | None, optimizer: object) -> None:
    if average is not None:
        average.load(folder)
    if isinstance(optimizer, MixedOptimizer):
        optimizer.load(folder)


def _always(_: float | None) -> bool:
    return True
