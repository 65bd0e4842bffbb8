"""Causal softmax attention over the groups of a `JaggedLayout`.

On a CPU the kernels are written out here: torch's fused CPU attention has no dropout, and without dropout it still
takes 1.5 times as long at the lengths of interaction histories. Elsewhere torch's own fused attention does the work.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrec.models.jagged import JaggedLayout
from genrec.models.layers import keep_mask

ROW_BLOCK = 64  # query rows at a time: rows r .. r+63 need the keys up to r+63 only, which saves a third of the square


MOST_SEQUENCES = 2**16 - 1
"""torch's memory-efficient kernel takes no more at a time with dropout (pytorch issue 154029)."""


def row_blocks(length: int) -> list[tuple[int, int]]:
    """Ranges of query rows, each of about `ROW_BLOCK`, that cover `length`."""
    parts = max(1, round(length / ROW_BLOCK))
    borders = [length * part // parts for part in range(parts + 1)]
    return list(pairwise(borders))


def scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * (a @ b)` for batches of matrices; the scale costs no extra pass."""
    ignored = a.new_empty(()).expand(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(ignored, a, b, beta=0, alpha=scale)


def causal_softmax_attention(qkv: Tensor, layout: JaggedLayout, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for every head, position i over positions up to i of its own sequence.

    `qkv` [num_tokens, num_heads * 3 * d] holds q, k, v of head 0, then of head 1, ...; returns
    [num_tokens, num_heads * d]. `dropout` drops attention weights; pass 0 outside training.
    """
    slots = layout.pad(qkv)
    if slots.device.type == "cpu":
        needs_gradient = torch.is_grad_enabled() and slots.requires_grad
        attended: Tensor = _CausalSoftmaxAttention.apply(  # type: ignore[no-untyped-call]
            slots, layout, dropout, needs_gradient
        )
    else:
        attended = library_attention(slots, layout, dropout)
    return layout.unpad(attended)


def library_attention(slots: Tensor, layout: JaggedLayout, dropout: float) -> Tensor:
    """The same on padded `slots` [num_slots * num_heads, 3 * d], by torch's own kernels, group by group."""
    outputs = []
    for group in layout.groups:
        heads = layout.block(slots, group).view(group.num_sequences, layout.num_heads, group.length, -1)
        for some in torch.split(heads, MOST_SEQUENCES):
            q, k, v = some.chunk(3, dim=3)  # [sequences, heads, length, d]
            outputs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).flatten(0, 2))
    return torch.cat(outputs)


class _CausalSoftmaxAttention(torch.autograd.Function):
    """Attention of padded slots; right padding under a causal mask is never seen by a real row."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, layout: JaggedLayout, dropout: float, needs_gradient: bool) -> Tensor:
        dim = slots.shape[1] // 3
        out = slots.new_empty(slots.shape[0], dim)
        saved = []
        for group in layout.groups:
            q, k, v = layout.block(slots, group).chunk(3, dim=2)  # [num_sequences * num_heads, length, d]
            group_out = layout.block(out, group)
            for first, last in row_blocks(group.length):
                scores = scaled_bmm(q[:, first:last], k[:, :last].mT, 1 / math.sqrt(dim))  # [.., rows, last]
                future = scores.new_full((last - first, last - first), -math.inf).triu_(1)
                scores[:, :, first:].add_(future)
                weights = torch.softmax(scores, dim=2)
                dropped = torch.mul(weights, keep_mask(weights, dropout), out=scores) if dropout > 0 else weights
                group_out[:, first:last] = torch.bmm(dropped, v[:, :last])
                if needs_gradient:
                    saved += [weights, dropped]
        ctx.save_for_backward(slots, out, *saved)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:
        """With D = rowsum(grad_out * out): grad_scores = dropped * (grad_out v^T) - weights * D."""
        slots, out, *saved = ctx.saved_tensors
        layout = ctx.layout
        dim = out.shape[1]
        scale = 1 / math.sqrt(dim)
        grad = torch.zeros_like(slots)
        row_dot = (grad_out * out).sum(dim=1, keepdim=True)
        tiles = iter(saved)
        for group in layout.groups:
            q, k, v = layout.block(slots, group).chunk(3, dim=2)
            grad_q, grad_k, grad_v = layout.block(grad, group).chunk(3, dim=2)
            group_grad, group_dot = layout.block(grad_out, group), layout.block(row_dot, group)
            for first, last in row_blocks(group.length):
                weights, dropped = next(tiles), next(tiles)
                rows = group_grad[:, first:last]
                grad_v[:, :last] += torch.bmm(dropped.mT, rows)
                grad_scores = torch.bmm(rows, v[:, :last].mT).mul_(dropped)
                grad_scores.addcmul_(weights, group_dot[:, first:last], value=-1)
                grad_q[:, first:last] = scaled_bmm(grad_scores, k[:, :last], scale)
                grad_k[:, :last] += scaled_bmm(grad_scores.mT, q[:, first:last], scale)
        return grad, None, None, None
