"""The optimizer and the learning rate, which is a function of the step and nothing else.

Weights are of three kinds: matrices (of linear layers), tables (a row for each value that is looked up: the items, and
what other inputs look up), and the others (positions, biases, norms, scalars). AdamW takes all, or what is left to it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.config import MuonConfig, OptimizerConfig
from genrec.errors import RunError
from genrec.models.item_table import ItemTable, NoItemTable
from genrec.training.muon import Orthogonalizer, groups_of, muon_step
from genrec.training.row_adagrad import rowwise_adagrad_step

TABLES_FILE = "tables.pt"

Kind = Literal["adamw", "muon", "rowwise-adagrad"]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, singly: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a model whose weights are whole. `fused` does one pass over memory, on CPU as on CUDA.

    `singly`: an engine that deals out its weights deals out each on its own (ZeRO 3, flat_parts.py).
    """
    if isinstance(config, MuonConfig) or config.table is not None:
        return MixedOptimizer(model, config, singly=singly)
    return torch.optim.AdamW(model.parameters(), fused=True, **_settings("adamw", config))


class MixedOptimizer(torch.optim.Optimizer):
    """Muon for matrices, row-wise Adagrad for tables, AdamW for the rest, as the config says.

    ZeRO flattens a group and deals it out: what a worker then holds is a stretch of it, whose place follows from the
    rank (flat_parts.py). So each table is a group of its own, and some matrices together are one, of which the workers
    share the work (muon.py).
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, *, singly: bool = False) -> None:
        kinds = {name: _optimizer_of(kind, config) for name, kind in weight_kinds(model).items()}
        weights = dict(model.named_parameters())
        names: dict[Kind, list[str]] = {kind: [n for n in weights if kinds[n] == kind] for kind in get_args(Kind)}
        matrices = groups_of([weights[name].shape for name in names["muon"]])
        parts: list[tuple[Kind, list[str]]] = [("muon", [names["muon"][k] for k in group]) for group in matrices]
        parts += [("rowwise-adagrad", [name]) for name in names["rowwise-adagrad"]]
        groups: list[dict[str, Any]] = [
            {
                "kind": kind,
                "names": of_group,
                "shapes": [tuple(weights[name].shape) for name in of_group],
                "params": [weights[name] for name in of_group],
            }
            for kind, of_group in [*parts, ("adamw", names["adamw"])]
        ]
        super().__init__([group | _settings(group["kind"], config) for group in groups], {})
        self._singly = singly
        tables = [group for group in groups if group["kind"] == "rowwise-adagrad"]
        self.accumulators = {table["names"][0]: torch.zeros(table["shapes"][0][0]) for table in tables}
        """Of each table [rows]: whole on every worker, so saved beside the engine's state, which ZeRO cuts up."""
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
            elif group["kind"] == "muon":
                muon_step(group, self.state, self._orthogonalize, singly=self._singly)
            else:
                for weight in weights:
                    self._step_of_table(weight, group)
        if left:
            for group in left:
                for name, value in self._adamw.defaults.items():
                    group.setdefault(name, value)
            self._adamw.param_groups, self._adamw.state = left, self.state
            self._adamw.step()
        return loss

    def _step_of_table(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        # Moments of zeros that take no memory, so checkpoints convert like AdamW's (universal.py).
        nothing = weight.new_zeros(()).expand(weight.shape)
        state.update(step=state.get("step", torch.tensor(0.0)) + 1, exp_avg=nothing, exp_avg_sq=nothing)
        (name,) = group["names"]
        self.accumulators[name] = self.accumulators[name].to(weight.device)
        rowwise_adagrad_step(weight, self.accumulators[name], group)

    def save(self, folder: Path) -> None:
        """Writes the accumulators of the tables into a checkpoint's folder; worker 0 does, all have the same."""
        if self.accumulators and (not dist.is_initialized() or dist.get_rank() == 0):
            torch.save({name: value.cpu() for name, value in self.accumulators.items()}, folder / TABLES_FILE)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on any number of workers and any engine; raises RunError when it does not fit."""
        if not self.accumulators:
            return
        path = folder / TABLES_FILE
        saved = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        for name, value in self.accumulators.items():
            if name not in saved or saved[name].shape != value.shape:
                raise RunError(
                    f"{path} has no {len(value)} accumulators of the table {name}; the model or optimizer.table was "
                    "changed: go on with what the run was, or start over with --fresh."
                )
        self.accumulators = saved


def weight_kinds(model: nn.Module) -> dict[str, Literal["matrix", "table", "other"]]:
    """What kind of weight each of a model's is, by name."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, ItemTable)) and not isinstance(module, NoItemTable)
    }
    return {
        name: "matrix" if id(weight) in linear else "table" if id(weight) in tables else "other"
        for name, weight in model.named_parameters()
    }


def _optimizer_of(kind: Literal["matrix", "table", "other"], config: OptimizerConfig) -> Kind:
    if kind == "matrix" and isinstance(config, MuonConfig):
        return "muon"
    return "rowwise-adagrad" if kind == "table" and config.table is not None else "adamw"


def _settings(kind: Kind, config: OptimizerConfig) -> dict[str, Any]:
    """What a group of a kind takes from the config."""
    if kind == "rowwise-adagrad" and config.table is not None:
        return {"lr": config.table.lr, "lr_ratio": config.table.lr / config.lr, "eps": config.table.eps}
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
    """The rate for step `step` (from 0) of `end_step`: linear warm-up, then constant, linear, cosine or inverse-sqrt.

    It depends on neither workers nor restarts, so a resumed run goes on where it was.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse-sqrt":
        return config.lr * max(config.min_lr_fraction, math.sqrt(max(1, config.warmup_steps) / (step + 1)))
    done = (step - config.warmup_steps) / max(1, end_step - config.warmup_steps)
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * falling)
