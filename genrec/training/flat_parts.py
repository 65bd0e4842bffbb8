"""Flat parts of a tensor: what ZeRO leaves with each worker, when a group of its optimizer holds that tensor alone.

Every worker's part has as many values, rank after rank; the last ones may end in padding, which is zero.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def gather_parts(part: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor of `shape` that the workers hold flat parts of, on every worker; all call it alike."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    whole = part
    if workers > 1:
        whole = torch.empty(workers * part.numel(), dtype=part.dtype, device=part.device)
        dist.all_gather(list(whole.chunk(workers)), part.contiguous())
    return whole[: torch.Size(shape).numel()].view(*shape)


def own_part(whole: Tensor, numel: int) -> Tensor:
    """This worker's flat part of `numel` values, padding included."""
    first = first_of_part(numel)
    piece = whole.flatten()[first : first + numel]
    if piece.numel() == numel:
        return piece
    return torch.cat([piece, piece.new_zeros(numel - piece.numel())])


def first_of_part(numel: int) -> int:
    """Where in the flat tensor this worker's part of `numel` values begins."""
    return numel * (dist.get_rank() if dist.is_initialized() else 0)
