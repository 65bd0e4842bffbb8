"""Muon for one matrix that a worker holds whole, or a flat part of (ZeRO).

    momentum <- m * momentum + (1 - m) * gradient
    update    = orthogonal((1 - m) * gradient + m * momentum) * 0.2 * sqrt(max(rows, columns))
    weight   <- weight - lr * weight_decay * weight - lr * update

https://kellerjordan.github.io/posts/muon/ with the scale of Liu et al. 2025 (arXiv:2502.16982), which gives updates
the size of AdamW's, so lr and weight decay carry over. The orthogonal factor is PyTorch's: five Newton-Schulz steps in
bf16. Momentum is elementwise, so each worker keeps its own part of it; for the factor the workers gather the update and
each takes its part of the answer ("distributed Muon" of the same paper).

DeepSpeed's own Muon is not used: it orthogonalises before the gradient's norm is known, so neither a poisoned step nor
clipping would mean what they mean elsewhere, and its state has no universal form, so a run could not change workers.
"""

from typing import Any

import torch
from torch import Tensor

from genrec.training.flat_parts import gather_parts, own_part


class Orthogonalizer:
    """Calls PyTorch's Muon for its orthogonal factor alone: a step of lr 1 from zero, without momentum."""

    def __init__(self) -> None:
        self._muon = torch.optim.Muon(
            [torch.zeros(1, 1)],
            lr=1.0,
            weight_decay=0.0,
            momentum=0.0,
            nesterov=False,
            adjust_lr_fn="match_rms_adamw",
        )

    def __call__(self, update: Tensor) -> Tensor:
        """The scaled orthogonal factor [rows, columns] of an update."""
        target = torch.zeros_like(update)
        target.grad = update
        self._muon.param_groups[0]["params"] = [target]
        self._muon.step()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._muon.state.clear()
        return target.neg_()


def muon_step(weight: Tensor, state: dict[str, Any], group: dict[str, Any], orthogonalize: Orthogonalizer) -> None:
    """One update of a weight with a gradient; `group` says its whole shape, `state` keeps its momentum.

    The momentum goes by the name of AdamW's first moment, and a second moment of zeros that takes no memory stands
    beside it: so checkpoints convert like AdamW's (universal.py).
    """
    gradient, momentum_decay, lr = weight.grad, group["momentum"], group["lr"]
    assert gradient is not None
    if not state:
        state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(weight))
    state["step"] += 1
    state["exp_avg_sq"] = weight.new_zeros(()).expand(weight.shape)
    momentum: Tensor = state["exp_avg"]
    momentum.lerp_(gradient, 1 - momentum_decay)
    update = gradient.lerp(momentum, momentum_decay)
    if weight.dim() == 2:
        update = orthogonalize(update)
    else:
        update = own_part(orthogonalize(gather_parts(update, group["shape"])), weight.numel())
    weight.mul_(1 - lr * group["weight_decay"])
    weight.add_(update, alpha=-lr)
