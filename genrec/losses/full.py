"""Cross entropy over the whole catalogue.

It works through rows and items in tiles, takes the gradient in the same pass, and keeps nothing but that gradient: the
backward pass only scales it, and one tile of at most `max_logits_bytes` of logits is all that exists at any time. The
arithmetic is fp32 (fp64 for fp64 inputs), also under autocast and with bf16 weights.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable

MIN_CHUNK_ROWS = 128  # fewer rows against the whole table would be memory-bound; the table is cut into tiles instead
CPU_CACHE_LOGITS = 2**19  # 2 MiB of fp32: on a CPU the passes over a tile that stays in the cache cost a third less


class FullSoftmax(nn.Module):
    """-log softmax over all items that training knows of the target's score / temperature, summed over the rows.

    With label smoothing e the target is 1 - e of the item and e of all items alike (Szegedy et al., 2016). The sum of
    the scores under the second part is the score of the mean item, so it needs no scores of its own.
    """

    def __init__(self, temperature: Temperature, max_logits_bytes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.max_logits_bytes = max_logits_bytes
        self.label_smoothing = label_smoothing

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: ItemTable,
        pool: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets]; there is no use for a pool.

        `weights` as in `Loss`.
        """
        rows = self.temperature(item_table.normalized(at_least_fp32(hidden)))

        def use(weight: Tensor) -> Tensor:
            table = item_table.normalized(at_least_fp32(item_table.known(weight)))
            needs_gradient = torch.is_grad_enabled() and (rows.requires_grad or table.requires_grad)
            max_logits = self.max_logits_bytes // rows.element_size()
            loss: Tensor = _FullSoftmax.apply(  # type: ignore[no-untyped-call]
                rows, table, targets, as_column(weights, rows), max_logits, needs_gradient
            )
            return loss + self._smoothing(rows, table, targets, weights) if self.label_smoothing else loss

        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = item_table(use)
        return loss

    def _smoothing(self, rows: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """What smoothing adds to the summed loss: e * (the target's score - the mean score)."""
        above_mean = (rows * (table.index_select(0, targets) - table[1:].mean(dim=0))).sum(dim=1)
        return self.label_smoothing * (above_mean if weights is None else above_mean * weights.to(rows.dtype)).sum()


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 when it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_column(weights: Tensor | None, rows: Tensor) -> Tensor | None:
    """`weights` [n] of `rows` [n, dim] as [n, 1], in the type of the rows."""
    return None if weights is None else weights.to(rows.dtype).unsqueeze(1)


class _FullSoftmax(torch.autograd.Function):
    """Cross entropy of `rows` [n, dim] over `table[1:]`, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        table: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        max_logits: int,
        needs_gradient: bool,
    ) -> Tensor:
        items = table[1:]  # without padding
        grad_rows = torch.zeros_like(rows) if needs_gradient else None
        grad_table = torch.zeros_like(table) if needs_gradient else None
        chunk_rows, tile_items = tile_shape(rows.shape[0], items.shape[0], max_logits, rows.is_cpu)
        # One piece of memory for all tiles: the system hands out fresh memory page by page, which costs a lot.
        tile = rows.new_empty(chunk_rows * tile_items)
        loss = rows.new_zeros(())
        for first in range(0, rows.shape[0], chunk_rows):
            chunk = slice(first, first + chunk_rows)
            gradients = None if grad_rows is None or grad_table is None else (grad_rows[chunk], grad_table[1:])
            weight = None if weights is None else weights[chunk]
            loss += _full_softmax_chunk(rows[chunk], items, targets[chunk] - 1, weight, (tile, tile_items), gradients)
        ctx.save_for_backward(grad_rows, grad_table)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_table = ctx.saved_tensors
        return grad_rows * grad_loss, grad_table * grad_loss, None, None, None, None


def tile_shape(num_rows: int, num_items: int, max_logits: int, on_cpu: bool) -> tuple[int, int]:
    """Rows and items of a tile of at most `max_logits`: all items when enough rows fit, else a square."""
    rows = min(max_logits // num_items, num_rows)
    if rows >= min(num_rows, MIN_CHUNK_ROWS):
        if on_cpu:
            rows = min(rows, max(MIN_CHUNK_ROWS, CPU_CACHE_LOGITS // num_items))
        return max(rows, 1), num_items
    rows = max(1, min(num_rows, math.isqrt(max_logits)))
    return rows, max_logits // rows


def _full_softmax_chunk(
    rows: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    tile: tuple[Tensor, int],
    gradients: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Summed loss of some rows; adds to the gradients (of the rows, of the items).

    `weights` [rows, 1] are factors of the rows' losses. `tile` is the memory for logits, and how many items it is to
    hold. One tile: its exponentials serve the sum and the gradient. Several: a first pass for the sums, a second for
    the gradients.
    """
    memory, tile_items = tile
    tiles = [(first, min(first + tile_items, items.shape[0])) for first in range(0, items.shape[0], tile_items)]

    def logits(first: int, last: int) -> Tensor:
        held = memory[: rows.shape[0] * (last - first)].view(rows.shape[0], last - first)
        return torch.mm(rows, items[first:last].T, out=held)  # [rows, tile]

    peak = rows.new_full((rows.shape[0], 1), -math.inf)
    total = rows.new_zeros(rows.shape[0], 1)
    for first, last in tiles:
        exponentials = logits(first, last)
        new_peak = torch.maximum(peak, exponentials.amax(dim=1, keepdim=True))
        exponentials.sub_(new_peak).exp_()
        total = total * torch.exp(peak - new_peak) + exponentials.sum(dim=1, keepdim=True)
        peak = new_peak
    target_scores = (rows * items.index_select(0, targets)).sum(dim=1, keepdim=True)
    losses = total.log() + peak - target_scores
    loss = losses.sum() if weights is None else (losses * weights).sum()
    if gradients is None:
        return loss
    grad_rows, grad_items = gradients
    divisor = total if weights is None else total / weights  # a weight of 0 divides by infinity
    scaled_rows = rows / divisor
    for first, last in tiles:
        if len(tiles) > 1:
            exponentials = logits(first, last).sub_(peak).exp_()
        # One place a row, 0 where the target is in another tile: no wait for the device, which `nonzero` would be.
        places = (targets - first).clamp(0, last - first - 1).unsqueeze(1)
        inside = ((targets >= first) & (targets < last)).unsqueeze(1)
        exponentials.scatter_add_(1, places, torch.where(inside, -total, 0.0))
        grad_rows.addmm_(exponentials, items[first:last])
        grad_items[first:last].addmm_(exponentials.T, scaled_rows)
    grad_rows.div_(divisor)
    return loss
