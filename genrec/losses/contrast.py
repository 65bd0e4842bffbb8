"""The target's score against those of some negatives, chunk by chunk, with the gradient taken in the same pass.

What is made of the scores (a softmax, or one yes or no for each) is a `Criterion`. Only one chunk of scores (or, with
negatives of its own for each row, of item vectors) exists at a time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrec.losses.full import CPU_CACHE_LOGITS, at_least_fp32
from genrec.losses.negatives import Negatives
from genrec.models.item_table import ItemTable


class Contrast(NamedTuple):
    """What a criterion makes of a chunk: the losses [rows, 1], and their derivatives by the scores.

    By the target's score it is `own` [rows, 1], by the negatives' `weights` [rows, k] / `divisor` [rows, 1].
    """

    losses: Tensor
    own: Tensor
    weights: Tensor
    divisor: Tensor

    def times(self, factors: Tensor | None) -> "Contrast":
        """The same for losses that are `factors` [rows, 1] times as large; 0 makes the divisor infinite."""
        if factors is None:
            return self
        return Contrast(self.losses * factors, self.own * factors, self.weights, self.divisor / factors)


class Targets(NamedTuple):
    """The target `items` [n] of n rows, and factors `weights` [n, 1] of the rows' losses, or None."""

    items: Tensor
    weights: Tensor | None = None

    def chunk(self, rows: slice) -> "Targets":
        """Those of some rows."""
        return Targets(self.items[rows], None if self.weights is None else self.weights[rows])


class Criterion(Protocol):
    """A loss of the target's score and the negatives' scores."""

    held_chunks: int
    """Tensors as large as the scores that exist at a time."""

    def __call__(self, own: Tensor, scores: Tensor) -> Contrast:
        """`own` [rows, 1] are the targets' scores; `scores` [rows, k], -inf where one does not count, are used up."""
        ...


def shared_contrast(
    rows: Tensor, targets: Targets, negatives: Negatives, item_table: ItemTable, criterion: Criterion, max_bytes: int
) -> Tensor:
    """Summed loss of `rows` [n, dim] against the negatives that all of them share."""

    def use(looked_up: Tensor) -> Tensor:
        vectors = item_table.normalized(at_least_fp32(looked_up))
        mask_bytes = 0 if rows.is_cpu else 1  # of a score: where the row's own target is
        score_bytes = rows.element_size() * criterion.held_chunks + mask_bytes
        chunk_rows = _chunk_rows(max_bytes, score_bytes * negatives.ids.shape[0])
        needs_gradient = torch.is_grad_enabled() and (rows.requires_grad or vectors.requires_grad)
        loss: Tensor = _SharedContrast.apply(  # type: ignore[no-untyped-call]
            rows, vectors, targets, negatives, criterion, chunk_rows, needs_gradient
        )
        return loss

    return _in_full_precision(use, rows, item_table, torch.cat([targets.items, negatives.ids]))


def own_contrast(
    rows: Tensor, targets: Targets, negatives: Negatives, item_table: ItemTable, criterion: Criterion, max_bytes: int
) -> Tensor:
    """Summed loss of `rows` [n, dim] against negatives [n, k] of their own.

    Costs a gather and a scatter of k vectors for each row, where shared negatives cost two small matrix products.
    """

    def use(weight: Tensor) -> Tensor:
        table = item_table.normalized(at_least_fp32(item_table.known(weight)))
        row_values = negatives.ids.shape[1] * (rows.shape[1] + criterion.held_chunks)
        chunk_rows = _chunk_rows(max_bytes, rows.element_size() * row_values)
        if rows.is_cpu:
            chunk_rows = min(chunk_rows, max(1, CPU_CACHE_LOGITS // row_values))
        needs_gradient = torch.is_grad_enabled() and (rows.requires_grad or table.requires_grad)
        loss: Tensor = _OwnContrast.apply(  # type: ignore[no-untyped-call]
            rows, table, targets, negatives, criterion, chunk_rows, needs_gradient
        )
        return loss

    return _in_full_precision(use, rows, item_table)


def _in_full_precision(
    use: Callable[[Tensor], Tensor], rows: Tensor, item_table: ItemTable, items: Tensor | None = None
) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        loss: Tensor = item_table(use, items)
    return loss


def _chunk_rows(max_bytes: int, row_bytes: int) -> int:
    return max(1, max_bytes // max(row_bytes, 1))


class _SharedContrast(torch.autograd.Function):
    """`criterion` over each row's target and the shared negatives: `vectors` [n + k, dim], the targets' first."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        vectors: Tensor,
        targets: Targets,
        negatives: Negatives,
        criterion: Criterion,
        chunk_rows: int,
        needs_gradient: bool,
    ) -> Tensor:
        positive, negative = vectors[: rows.shape[0]], vectors[rows.shape[0] :]
        grads = [torch.zeros_like(x) for x in (rows, vectors)] if needs_gradient else []
        log_weights = None if negatives.log_weights is None else negatives.log_weights.to(rows.dtype)
        held = rows.new_empty(min(chunk_rows, rows.shape[0]), negative.shape[0])
        loss = rows.new_zeros(())
        for first in range(0, rows.shape[0], chunk_rows):
            chunk = slice(first, first + chunk_rows)
            row, own_vectors, (target, weight) = rows[chunk], positive[chunk], targets.chunk(chunk)
            scores = torch.mm(row, negative.T, out=held[: row.shape[0]])  # [chunk, k]
            if log_weights is not None:
                scores += log_weights
            if rows.is_cpu:
                scores[_own_target(target, negatives.ids)] = -math.inf
            else:  # a pass over the scores is cheaper there than a wait for the device
                scores.masked_fill_(negatives.ids == target.unsqueeze(1), -math.inf)
            found = criterion((row * own_vectors).sum(dim=1, keepdim=True), scores).times(weight)
            loss += found.losses.sum()
            if needs_gradient:
                grads[0][chunk] = (found.weights @ negative).div_(found.divisor).addcmul_(found.own, own_vectors)
                grads[1][: rows.shape[0]][chunk] = found.own * row
                grads[1][rows.shape[0] :].addmm_(found.weights.T, row / found.divisor)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None, None, None, None


def _own_target(targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every one of the rising `negatives` [k] that equals the row's target."""
    first = torch.searchsorted(negatives, targets)
    counts = torch.searchsorted(negatives, targets, right=True) - first
    rows = torch.repeat_interleave(counts)
    run_starts = counts.cumsum(0) - counts
    columns = torch.arange(rows.shape[0], device=rows.device) - (run_starts - first)[rows]
    return rows, columns


class _OwnContrast(torch.autograd.Function):
    """`criterion` over each row's target and its own negatives [n, k], looked up in `table`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        table: Tensor,
        targets: Targets,
        negatives: Negatives,
        criterion: Criterion,
        chunk_rows: int,
        needs_gradient: bool,
    ) -> Tensor:
        grads = [torch.zeros_like(x) for x in (rows, table)] if needs_gradient else []
        loss = rows.new_zeros(())
        num_negatives, dim = negatives.ids.shape[1], rows.shape[1]
        held = rows.new_empty(min(chunk_rows, rows.shape[0]) * num_negatives, dim)
        for first in range(0, rows.shape[0], chunk_rows):
            chunk = slice(first, first + chunk_rows)
            row, ids, (target, weight) = rows[chunk], negatives.ids[chunk], targets.chunk(chunk)
            own_vectors = table.index_select(0, target)
            looked_up = torch.index_select(table, 0, ids.flatten(), out=held[: ids.numel()])
            vectors = looked_up.view(*ids.shape, dim)
            scores = torch.bmm(vectors, row.unsqueeze(2)).squeeze(2)  # [chunk, k]
            if negatives.log_weights is not None:
                scores += negatives.log_weights[chunk].to(rows.dtype)
            scores.masked_fill_(ids == target.unsqueeze(1), -math.inf)
            found = criterion((row * own_vectors).sum(dim=1, keepdim=True), scores).times(weight)
            loss += found.losses.sum()
            if needs_gradient:
                pull = torch.bmm(found.weights.unsqueeze(1), vectors).squeeze(1)
                grads[0][chunk] = pull.div_(found.divisor).addcmul_(found.own, own_vectors)
                grads[1].index_add_(0, target, found.own * row)
                scaled = (row / found.divisor).unsqueeze(1)
                torch.mul(found.weights.unsqueeze(2), scaled, out=vectors)  # the vectors have served
                grads[1].index_add_(0, ids.flatten(), looked_up)
            del scores, found  # before the next chunk makes its own
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None, None, None, None
