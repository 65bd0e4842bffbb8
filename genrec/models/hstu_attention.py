"""HSTU's attention under a causal mask, with its two learned biases (Zhai et al., 2024): SiLU(q k^T + bias) v / n, or
softmax((q k^T + bias) / sqrt(d)) v.

The biases are shared by the heads of a layer; the buckets of the time bias are shared by all layers of a batch. The
backward pass of the biases has no scatter: sums along diagonals, and one counting pass over the buckets.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrec.models.attention import row_blocks, scaled_bmm
from genrec.models.jagged import JaggedLayout

NUM_TIME_BUCKETS = 129
BUCKET_WIDTH = 0.301  # as published: about log10(2), though the logarithm it divides is natural
MASKED_SCORE = -3e4  # sigmoid and exp of it are 0 in every dtype: a masked weight and its gradient are exactly 0


class AttentionBias(NamedTuple):
    """What is added to the scores; either table may be missing.

    time_table      [129]                   weight of each bucket of the time between key and query
    position_table  [max_length]            weight of each distance i - j between query and key
    buckets         one [num_sequences, rows, keys] int32 tensor a tile, from `time_buckets`
    """

    time_table: Tensor | None
    position_table: Tensor | None
    buckets: list[Tensor]


class AttentionForm(NamedTuple):
    """How scores become weights: f(score_scale * q k^T + bias) / divisor.

    For `silu`, f is SiLU; `divisor` None is the number of events that the query sees. For `softmax` the bias is scaled
    like q k^T, as published, and the divisor is 1.
    """

    query_dim: int
    kind: Literal["silu", "softmax"]
    score_scale: float
    divisor: float | None


def time_buckets(times: Tensor, query_times: Tensor, layout: JaggedLayout) -> list[Tensor]:
    """Bucket of |time of query i - time of event j|, for every tile of the layout.

    clamp(floor(ln(max(|query_i - t_j|, 1)) / 0.301), 0, 128): differences in whole seconds are exact, the logarithm is
    taken in fp32 as in the published code. `times` and `query_times` are [num_tokens] int64; as published, a query has
    the time of the event that its row predicts.
    """
    slot_times = times.index_select(0, layout.slot_tokens)
    slot_query_times = query_times.index_select(0, layout.slot_tokens)
    buckets = []
    for group in layout.groups:
        part = slice(group.start, group.start + group.num_sequences * group.length)
        keys = slot_times[part].view(group.num_sequences, 1, group.length)
        queries = slot_query_times[part].view(group.num_sequences, group.length, 1)
        for first, last in row_blocks(group.length):
            gaps = (queries[:, first:last] - keys[:, :, :last]).float().abs_().clamp_(min=1)
            buckets.append(gaps.log_().div_(BUCKET_WIDTH).to(torch.int32).clamp_(max=NUM_TIME_BUCKETS - 1))
    return buckets


def causal_biased_attention(vqk: Tensor, layout: JaggedLayout, bias: AttentionBias, form: AttentionForm) -> Tensor:
    """The weighted sum of values for every head, position i over positions up to i of its own sequence.

    `vqk` [num_tokens, num_heads * (value_dim + 2 * query_dim)] holds v, q, k of head 0, then of head 1, ...; returns
    [num_tokens, num_heads * value_dim].
    """
    slots = layout.pad(vqk)
    tables = [table for table in bias[:2] if table is not None]
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (slots, *tables))
    time_table, position_table = bias.time_table, bias.position_table
    if form.kind == "softmax":
        time_table = None if time_table is None else time_table * form.score_scale
        position_table = None if position_table is None else position_table * form.score_scale
    attended: Tensor = _CausalBiasedAttention.apply(  # type: ignore[no-untyped-call]
        slots, time_table, position_table, bias.buckets, layout, form, needs_gradient
    )
    out = layout.unpad(attended)
    return out / (layout.positions + 1).unsqueeze(1) if form.divisor is None else out


class _CausalBiasedAttention(torch.autograd.Function):
    """Attention of padded slots, saving two tensors of each tile: the weights w, and a second one.

    With g the gradient of the output, a score's gradient is (g v^T) * SiLU' for SiLU, whose derivative is the second
    tensor, and (g v^T - rowsum(g * out)) * w for softmax, whose second tensor is w again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        slots: Tensor,
        time_table: Tensor | None,
        position_table: Tensor | None,
        buckets: list[Tensor],
        layout: JaggedLayout,
        form: AttentionForm,
        needs_gradient: bool,
    ) -> Tensor:
        widths = [slots.shape[1] - 2 * form.query_dim, form.query_dim, form.query_dim]
        out = slots.new_empty(slots.shape[0], widths[0])
        position_bias = _position_bias(position_table, layout.max_length, slots)
        tiles = iter(buckets)
        saved = []
        for group in layout.groups:
            v, q, k = torch.split(
                layout.block(slots, group), widths, dim=2
            )  # [num_sequences * num_heads, length, width]
            group_out = layout.block(out, group)
            for first, last in row_blocks(group.length):
                # [num_sequences * num_heads, rows, last]
                scores = scaled_bmm(q[:, first:last], k[:, :last].mT, form.score_scale)
                tile_bias = position_bias[first:last, :last]
                if time_table is not None:
                    bucket = next(tiles)
                    tile_bias = time_table.index_select(0, bucket.flatten()).view(bucket.shape) + tile_bias
                    tile_bias = tile_bias.unsqueeze(1)  # one bias for all heads
                scores.view(group.num_sequences, layout.num_heads, last - first, last).add_(tile_bias)
                gate = None if form.kind == "softmax" else torch.sigmoid(scores)
                # Autocast on CUDA computes a softmax in fp32, and the backward pass needs what the products were.
                weights = torch.softmax(scores, dim=2).to(scores.dtype) if gate is None else scores.mul_(gate)
                group_out[:, first:last] = scaled_bmm(weights, v[:, :last], 1 / (form.divisor or 1))
                if needs_gradient:  # SiLU' = s + a - a s
                    saved += [weights, weights if gate is None else (weights + gate).addcmul_(weights, gate, value=-1)]
        kept_out = out if form.kind == "softmax" else None
        ctx.save_for_backward(slots, kept_out, time_table, position_table, *buckets, *saved)
        ctx.num_buckets, ctx.layout, ctx.widths, ctx.form = len(buckets), layout, widths, form
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        slots, out, time_table, position_table, *rest = ctx.saved_tensors
        layout, scale, divisor = ctx.layout, ctx.form.score_scale, ctx.form.divisor or 1
        row_dot = None if out is None else (grad_out * out).sum(dim=1, keepdim=True)
        buckets, tiles = iter(rest[: ctx.num_buckets]), iter(rest[ctx.num_buckets :])
        grad = torch.zeros_like(slots)
        grad_time = None if time_table is None else torch.zeros_like(time_table, dtype=torch.float64)
        grad_position = None if position_table is None else slots.new_zeros(layout.max_length, layout.max_length)
        for group in layout.groups:
            v, q, k = torch.split(layout.block(slots, group), ctx.widths, dim=2)
            grad_v, grad_q, grad_k = torch.split(layout.block(grad, group), ctx.widths, dim=2)
            group_grad = layout.block(grad_out, group)
            for first, last in row_blocks(group.length):
                weights, derivative = next(tiles), next(tiles)
                rows = group_grad[:, first:last]
                grad_v[:, :last] += scaled_bmm(weights.mT, rows, 1 / divisor)
                grad_scores = scaled_bmm(rows, v[:, :last].mT, 1 / divisor)
                if row_dot is not None:
                    grad_scores.sub_(layout.block(row_dot, group)[:, first:last])
                grad_scores.mul_(derivative)
                grad_q[:, first:last] = scaled_bmm(grad_scores, k[:, :last], scale)
                grad_k[:, :last] += scaled_bmm(grad_scores.mT, q[:, first:last], scale)
                if grad_time is None and grad_position is None:
                    continue
                grad_bias = grad_scores.view(group.num_sequences, layout.num_heads, last - first, last).sum(1)
                if grad_time is not None:
                    grad_time += _sum_by_bucket(grad_bias, next(buckets))
                if grad_position is not None:
                    grad_position[first:last, :last] += grad_bias.sum(0)
        return (
            grad,
            None if grad_time is None else grad_time.to(time_table.dtype),
            None if grad_position is None else _diagonal_sums(grad_position, position_table),
            *(None,) * 4,
        )


def _sum_by_bucket(values: Tensor, buckets: Tensor) -> Tensor:
    """Sum of `values` in each bucket; a counting pass takes 1.4 ns an element, a scatter 5."""
    weights = values.flatten()
    if weights.dtype not in (torch.float32, torch.float64):
        weights = weights.float()
    return torch.bincount(buckets.flatten(), weights=weights, minlength=NUM_TIME_BUCKETS)


def _position_bias(table: Tensor | None, length: int, like: Tensor) -> Tensor:
    """[length, length]: table[i - j] for the past, `MASKED_SCORE` for the future."""
    past = like.new_zeros(length) if table is None else table[:length].flip(0)
    future = past.new_full((max(length - 1, 0),), MASKED_SCORE)
    return torch.cat([past, future]).unfold(0, length, 1).flip(0)


def _diagonal_sums(matrix: Tensor, table: Tensor) -> Tensor:
    """Gradient of `table` [max_length]: sum of `matrix` [length, length] over i - j = 0, 1, ...

    Rows of width 2 * length, read again as rows of width 2 * length + 1, put every diagonal into one column.
    """
    length = matrix.shape[0]
    skewed = F.pad(F.pad(matrix, (length, 0)).flatten(), (0, length)).view(length, 2 * length + 1)
    sums = torch.zeros_like(table)
    sums[:length] = skewed.sum(0)[1 : length + 1].flip(0)
    return sums
