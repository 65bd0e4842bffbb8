"""The optimizer and the learning rate, which is a function of the step and nothing else.

Weights are of three kinds: matrices (of linear layers), tables (a row for each value that is looked up: the items, and
what other inputs look up), and the others (positions, biases, norms, scalars). AdamW takes all, or what is left to it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from genrec.config import MuonConfig, OptimizerConfig
from genrec.training.muon import Orthogonalizer, muon_step

Kind = Literal["adamw", "muon"]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a model whose weights are whole. `fused` does one pass over memory, on CPU as on CUDA."""
    if not isinstance(config, MuonConfig):
        return torch.optim.AdamW(model.parameters(), fused=True, **_settings("adamw", config))
    return MixedOptimizer(model, config)


class MixedOptimizer(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest.

    Each matrix is a group of its own, because ZeRO flattens a group and deals it out: what a worker then holds is a
    stretch of that matrix, whose place follows from the rank (flat_parts.py).
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        kinds = weight_kinds(model)
        own = "matrix" if isinstance(config, MuonConfig) else None
        weights = dict(model.named_parameters())
        groups: list[dict[str, Any]] = []
        for name, weight in weights.items():
            if kinds[name] == own:
                group = {"kind": "muon", "names": [name], "shape": tuple(weight.shape), "params": [weight]}
                groups.append(group | _settings("muon", config))
        rest = [name for name in weights if kinds[name] != own]
        groups.append(
            {"kind": "adamw", "names": rest, "params": [weights[n] for n in rest]} | _settings("adamw", config)
        )
        super().__init__(groups, {})
        self._adamw = torch.optim.AdamW([torch.zeros(1)], fused=True)
        self._orthogonalize = Orthogonalizer()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all weights with a gradient. DeepSpeed calls it with a part of the groups at a time."""
        loss = None if closure is None else closure()
        left = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["kind"] == "adamw":
                left += [group] if weights else []
                continue
            for weight in weights:
                muon_step(weight, self.state[weight], group, self._orthogonalize)
        if left:
            for group in left:
                for name, value in self._adamw.defaults.items():
                    group.setdefault(name, value)
            self._adamw.param_groups, self._adamw.state = left, self.state
            self._adamw.step()
        return loss


def weight_kinds(model: nn.Module) -> dict[str, Literal["matrix", "other"]]:
    """What kind of weight each of a model's is, by name."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return {name: "matrix" if id(weight) in linear else "other" for name, weight in model.named_parameters()}


def _settings(kind: Kind, config: OptimizerConfig) -> dict[str, Any]:
    """What a group of a kind takes from the config."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if kind == "muon" and isinstance(config, MuonConfig):
        return shared | {"momentum": config.momentum, "lr_ratio": (config.matrix_lr or config.lr) / config.lr}
    return shared | {"betas": (config.beta1, config.beta2)}


def apply_settings(optimizer: Any, config: OptimizerConfig) -> None:
    """Puts the config's settings into the groups of an optimizer that was loaded: a checkpoint holds its own."""
    for group in optimizer.param_groups:
        group.update(_settings(group.get("kind", "adamw"), config))


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Sets the rate of a step; a group with a peak of its own follows the schedule in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


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
