"""Muon for the matrices of a group, which a worker holds whole, or a flat part of (ZeRO).

    momentum <- m * momentum + (1 - m) * gradient
    update    = orthogonal((1 - m) * gradient + m * momentum) * 0.2 * sqrt(max(rows, columns))
    weight   <- weight - lr * weight_decay * weight - lr * update

https://kellerjordan.github.io/posts/muon/ with the scale of Liu et al. 2025 (arXiv:2502.16982), which gives updates
the size of AdamW's, so lr and weight decay carry over. The orthogonal factor is PyTorch's: five Newton-Schulz steps in
bf16. Momentum is elementwise, so each worker keeps its own part of it. The factors are shared out: each worker makes
those of some matrices of the group, all of about the same cost together, and the workers exchange them ("distributed
Muon" of the same paper). What travels is bf16, which is what the Newton-Schulz steps read and write, so no bit of the
result depends on the workers.

DeepSpeed's own Muon is not used: it orthogonalises before the gradient's norm is known, so neither a poisoned step nor
clipping would mean what they mean elsewhere, and its state has no universal form, so a run could not change workers.
"""

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.training.flat_parts import gather_equal, gather_several, num_workers, own_rank, stretches

GROUP_NUMEL = 2**27
"""Values of the matrices of one group, at most: while it is updated, a worker holds 4 to 6 bytes of each."""


class Orthogonalizer:
    """Calls PyTorch's Muon for its orthogonal factor alone: a step from zero, without momentum."""

    def __init__(self) -> None:
        self._muon = torch.optim.Muon(
            [torch.zeros(1, 1)], weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
        )

    def __call__(self, update: Tensor) -> Tensor:
        """The orthogonal factor [rows, columns] of an update, in bf16."""
        target = torch.zeros_like(update, dtype=torch.bfloat16)
        target.grad = update.bfloat16()
        self._muon.param_groups[0].update(params=[target], lr=1 / scale_of(update.shape))
        self._muon.step()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._muon.state.clear()
        return target.neg_()


def scale_of(shape: Sequence[int]) -> float:
    """What an orthogonal factor is multiplied by."""
    return 0.2 * math.sqrt(max(shape))


def groups_of(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The numbers of matrices by group, in order: as few groups as GROUP_NUMEL allows, whatever the workers."""
    groups: list[list[int]] = []
    held = 0
    for number, shape in enumerate(shapes):
        numel = torch.Size(shape).numel()
        if not groups or held + numel > GROUP_NUMEL:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += numel
    return groups


def muon_step(
    group: dict[str, Any],
    states: MutableMapping[Tensor, dict[str, Any]],
    orthogonalize: Orthogonalizer,
    *,
    singly: bool,
) -> None:
    """One update of the weights of a group that have a gradient; all workers call it alike.

    They are matrices, or one flat part of all matrices of the group, whose `shapes` the group says (`singly` as in
    flat_parts.py). `states` keeps their momentum.
    """
    weights = [weight for weight in group["params"] if weight.grad is not None]
    updates = [_with_momentum(weight, states[weight], group) for weight in weights]
    if weights and weights[0].dim() == 1:
        changes = [_change_of_part(updates[0], group["shapes"], orthogonalize, singly=singly)]
    else:
        factors = shared_factors(updates, orthogonalize)
        changes = [factor.to(w.dtype) * scale_of(w.shape) for factor, w in zip(factors, weights, strict=True)]
    for weight, change in zip(weights, changes, strict=True):
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(change, alpha=-group["lr"])


def shared_factors(updates: Sequence[Tensor], orthogonalize: Orthogonalizer) -> list[Tensor]:
    """The orthogonal factors of `updates`, which every worker has: each makes some, and all get all, in bf16."""
    workers = num_workers()
    owners = owners_of([update.shape for update in updates], workers)
    made = {k: orthogonalize(update) for k, update in enumerate(updates) if owners[k] == own_rank()}
    if workers == 1 or not updates:
        return list(made.values())
    numels = [sum(u.numel() for u, owner in zip(updates, owners, strict=True) if owner == w) for w in range(workers)]
    part = torch.zeros(max(numels), dtype=torch.bfloat16, device=updates[0].device)
    part[: numels[own_rank()]] = torch.cat([part[:0], *(factor.flatten() for factor in made.values())])
    gathered = gather_equal(part)
    places = [0] * workers
    factors = []
    for update, owner in zip(updates, owners, strict=True):
        first, places[owner] = places[owner], places[owner] + update.numel()
        factors.append(gathered[owner, first : places[owner]].view(update.shape))
    return factors


def owners_of(shapes: Sequence[Sequence[int]], workers: int) -> list[int]:
    """The worker that makes the factor of each matrix: the costliest first, each to whoever has least to do."""
    costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]  # of a Newton-Schulz step
    loads, owners = [0] * workers, [0] * len(shapes)
    for number in sorted(range(len(shapes)), key=lambda number: -costs[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def _with_momentum(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """What is to be made orthogonal, after the momentum has taken the gradient in.

    The momentum goes by the name of AdamW's first moment, and a second moment of zeros that takes no memory stands
    beside it: so checkpoints convert like AdamW's (universal.py).
    """
    gradient, decay = weight.grad, group["momentum"]
    assert gradient is not None
    if not state:
        state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(weight))
    state["step"] += 1
    state["exp_avg_sq"] = weight.new_zeros(()).expand(weight.shape)
    momentum: Tensor = state["exp_avg"]
    momentum.lerp_(gradient, 1 - decay)
    return gradient.lerp(momentum, decay)


def _change_of_part(
    update: Tensor, shapes: Sequence[Sequence[int]], orthogonalize: Orthogonalizer, *, singly: bool
) -> Tensor:
    """The scaled factors of all matrices of a group, as far as they lie in this worker's part; zeros in its padding."""
    factors = shared_factors(gather_several(update.bfloat16(), shapes, singly=singly), orthogonalize)
    change = torch.zeros_like(update)
    numels = [factor.numel() for factor in factors]
    for at in stretches(own_rank(), num_workers(), numels, update.numel(), singly=singly):
        own = factors[at.tensor].flatten()[at.first : at.last].to(update.dtype)
        change[at.place : at.place + own.numel()] = own * scale_of(shapes[at.tensor])
    return change
