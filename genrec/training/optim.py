"""The optimizer and the learning rate, which is a function of the step and nothing else."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from genrec.config import OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters. `fused` does one pass over memory, on CPU as on CUDA."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, end_step: int, config: OptimizerConfig) -> float:
    """The rate for step `step` (from 0) of `end_step`: linear warm-up, then constant, linear or cosine.

    It depends on neither workers nor restarts, so a resumed run goes on where it was.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, end_step - config.warmup_steps)
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * falling)
