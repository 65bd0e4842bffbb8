"""Training objectives over hidden states and the item table.

Both losses work through the rows in chunks, take the gradient in the same pass, and keep nothing but that gradient:
the backward pass only scales it, and no more than `max_logits_bytes` of logits exist at any time. The arithmetic is
fp32 (fp64 for fp64 inputs), also under autocast and with bf16 weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrec.config import FullSoftmaxConfig, SampledSoftmaxConfig
from genrec.models.base import Loss
from genrec.models.item_table import ItemTable

MIN_CHUNK_ROWS = 128  # fewer rows against the whole table would be memory-bound; the table is cut into tiles instead
CPU_CACHE_LOGITS = 2**21  # 8 MiB of fp32: on a CPU, logits that stay in the cache make the loss a fifth faster


@dataclass(frozen=True, slots=True)
class FullSoftmax:
    """-log softmax over all items that training knows of the target's score / temperature, summed over the rows."""

    temperature: float
    max_logits_bytes: int

    def __call__(self, hidden: Tensor, targets: Tensor, item_table: ItemTable) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets]."""
        rows = item_table.normalized(_at_least_fp32(hidden)) / self.temperature

        def use(weight: Tensor) -> Tensor:
            table = item_table.normalized(_at_least_fp32(item_table.known(weight)))
            needs_gradient = torch.is_grad_enabled() and (rows.requires_grad or table.requires_grad)
            max_logits = self.max_logits_bytes // rows.element_size()
            loss: Tensor = _FullSoftmax.apply(rows, table, targets, max_logits, needs_gradient)  # type: ignore[no-untyped-call]
            return loss

        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = item_table(use)
        return loss


@dataclass(frozen=True, slots=True)
class SampledSoftmax:
    """-log softmax over the target and negatives that all rows share, drawn uniformly from what training knows.

    A negative that is a row's own target does not count for that row. Draws from torch's default CPU generator.
    """

    temperature: float
    num_negatives: int
    max_logits_bytes: int

    def __call__(self, hidden: Tensor, targets: Tensor, item_table: ItemTable) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets]."""
        negatives = torch.randint(1, item_table.num_train_items + 1, (self.num_negatives,), device="cpu")
        return self.with_negatives(hidden, targets, negatives.to(targets.device), item_table)

    def with_negatives(self, hidden: Tensor, targets: Tensor, negatives: Tensor, item_table: ItemTable) -> Tensor:
        """The same for given `negatives` [num_negatives]."""
        negatives = negatives.sort().values
        rows = item_table.normalized(_at_least_fp32(hidden)) / self.temperature

        def use(weight: Tensor) -> Tensor:
            vectors = item_table.normalized(_at_least_fp32(F.embedding(torch.cat([targets, negatives]), weight)))
            positive, negative = vectors[: targets.shape[0]], vectors[targets.shape[0] :]
            needs_gradient = torch.is_grad_enabled() and (rows.requires_grad or vectors.requires_grad)
            chunk_rows = max(1, self.max_logits_bytes // (rows.element_size() * negatives.shape[0]))
            loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
                rows, positive, negative, targets, negatives, chunk_rows, needs_gradient
            )
            return loss

        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = item_table(use)
        return loss


def build_loss(config: FullSoftmaxConfig | SampledSoftmaxConfig) -> Loss:
    """The loss of a config section."""
    if isinstance(config, FullSoftmaxConfig):
        return FullSoftmax(config.temperature, config.max_logits_bytes)
    return SampledSoftmax(config.temperature, config.num_negatives, config.max_logits_bytes)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _FullSoftmax(torch.autograd.Function):
    """Cross entropy of `rows` [n, dim] over `table[1:]`, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, table: Tensor, targets: Tensor, max_logits: int, needs_gradient: bool
    ) -> Tensor:
        items = table[1:]  # without padding
        grad_rows = torch.zeros_like(rows) if needs_gradient else None
        grad_table = torch.zeros_like(table) if needs_gradient else None
        chunk_rows, tile_items = _tile_shape(rows.shape[0], items.shape[0], max_logits, rows.is_cpu)
        loss = rows.new_zeros(())
        for first in range(0, rows.shape[0], chunk_rows):
            chunk = slice(first, first + chunk_rows)
            chunk_targets = targets[chunk] - 1
            loss += _full_softmax_chunk(
                rows[chunk],
                items,
                chunk_targets,
                tile_items,
                None if grad_rows is None or grad_table is None else (grad_rows[chunk], grad_table[1:]),
            )
        ctx.save_for_backward(grad_rows, grad_table)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_rows, grad_table = ctx.saved_tensors
        return grad_rows * grad_loss, grad_table * grad_loss, None, None, None


def _tile_shape(num_rows: int, num_items: int, max_logits: int, on_cpu: bool) -> tuple[int, int]:
    """Rows and items of a tile of at most `max_logits`: all items when enough rows fit, else a square."""
    rows = max_logits // num_items
    if rows >= min(num_rows, MIN_CHUNK_ROWS):
        if on_cpu:
            rows = min(rows, max(MIN_CHUNK_ROWS, CPU_CACHE_LOGITS // num_items))
        return max(rows, 1), num_items
    rows = max(1, min(num_rows, math.isqrt(max_logits)))
    return rows, max_logits // rows


def _full_softmax_chunk(
    rows: Tensor, items: Tensor, targets: Tensor, tile_items: int, gradients: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Summed loss of some rows; adds to the gradients (of the rows, of the items).

    One tile: its exponentials serve the sum and the gradient. Several: a first pass for the sums, a second for the
    gradients.
    """
    tiles = [(first, min(first + tile_items, items.shape[0])) for first in range(0, items.shape[0], tile_items)]
    peak = rows.new_full((rows.shape[0], 1), -math.inf)
    total = rows.new_zeros(rows.shape[0], 1)
    for first, last in tiles:
        exponentials = rows @ items[first:last].T  # [rows, tile]
        new_peak = torch.maximum(peak, exponentials.amax(dim=1, keepdim=True))
        exponentials.sub_(new_peak).exp_()
        total = total * torch.exp(peak - new_peak) + exponentials.sum(dim=1, keepdim=True)
        peak = new_peak
    target_scores = (rows * items.index_select(0, targets)).sum(dim=1, keepdim=True)
    loss = (total.log() + peak - target_scores).sum()
    if gradients is None:
        return loss
    grad_rows, grad_items = gradients
    scaled_rows = rows / total
    for first, last in tiles:
        if len(tiles) > 1:
            exponentials = torch.mm(rows, items[first:last].T).sub_(peak).exp_()
        inside = ((targets >= first) & (targets < last)).nonzero().squeeze(1)
        exponentials[inside, targets[inside] - first] -= total[inside, 0]
        grad_rows.addmm_(exponentials, items[first:last])
        grad_items[first:last].addmm_(exponentials.T, scaled_rows)
    grad_rows.div_(total)
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """Cross entropy of `rows` [n, dim] over each row's `positive` [n, dim] and the shared `negative` [k, dim]."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        positive: Tensor,
        negative: Tensor,
        targets: Tensor,
        negatives: Tensor,
        chunk_rows: int,
        needs_gradient: bool,
    ) -> Tensor:
        grads = [torch.zeros_like(x) for x in (rows, positive, negative)] if needs_gradient else []
        loss = rows.new_zeros(())
        for first in range(0, rows.shape[0], chunk_rows):
            chunk = slice(first, first + chunk_rows)
            row, own = rows[chunk], positive[chunk]
            scores = row @ negative.T  # [chunk, k]
            scores[_own_target(targets[chunk], negatives)] = -math.inf
            own_score = (row * own).sum(dim=1, keepdim=True)
            peak = torch.maximum(scores.amax(dim=1, keepdim=True), own_score)
            exponentials = scores.sub_(peak).exp_()
            own_exponential = torch.exp(own_score - peak)
            total = exponentials.sum(dim=1, keepdim=True) + own_exponential
            loss += (total.log() + peak - own_score).sum()
            if needs_gradient:
                own_grad = own_exponential / total - 1
                grads[0][chunk] = (exponentials @ negative).div_(total).addcmul_(own_grad, own)
                grads[1][chunk] = own_grad * row
                grads[2].addmm_(exponentials.T, row / total)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None, None, None


def _own_target(targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every one of the sorted `negatives` [k] that equals the row's target."""
    first = torch.searchsorted(negatives, targets)
    counts = torch.searchsorted(negatives, targets, right=True) - first
    rows = torch.repeat_interleave(counts)
    run_starts = counts.cumsum(0) - counts
    columns = torch.arange(rows.shape[0], device=rows.device) - (run_starts - first)[rows]
    return rows, columns
