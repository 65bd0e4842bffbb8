"""Flat parts of tensors: what ZeRO leaves with each worker of a group of its optimizer.

Every worker's part has as many values, rank after rank. Of a group of one tensor it is a stretch of that tensor. Of
several, ZeRO 1 and 2 lay them one behind the other and cut that (`singly` false); ZeRO 3 cuts every tensor, and a
worker's part is its stretches one behind the other. Parts may end in padding, which is zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Stretch(NamedTuple):
    """Values `first` .. `last` - 1 of a tensor, by its number in the group, which begin at `place` of a part."""

    tensor: int
    first: int
    last: int
    place: int


def stretches(rank: int, workers: int, numels: Sequence[int], part_numel: int, *, singly: bool) -> list[Stretch]:
    """What the part of worker `rank` holds of tensors with `numels` values."""
    found, place, begin = [], 0, rank * part_numel
    for tensor, numel in enumerate(numels):
        if singly:
            share = -(-numel // workers)
            first, last = min(numel, rank * share), min(numel, (rank + 1) * share)
            found.append(Stretch(tensor, first, last, place))
            place += share
        else:
            first, last = max(0, begin - place), min(numel, begin + part_numel - place)
            found.append(Stretch(tensor, first, last, place + first - begin))
            place += numel
    return [stretch for stretch in found if stretch.first < stretch.last]


def gather_equal(part: Tensor) -> Tensor:
    """What all workers pass, [workers, *part.shape], on every worker; all call it alike."""
    workers = num_workers()
    if workers == 1:
        return part.unsqueeze(0)
    gathered = torch.empty(workers, *part.shape, dtype=part.dtype, device=part.device)
    dist.all_gather(list(gathered.unbind()), part.contiguous())
    return gathered


def gather_parts(part: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor of `shape` that the workers hold flat parts of, on every worker; all call it alike."""
    return gather_equal(part).flatten()[: torch.Size(shape).numel()].view(*shape)


def gather_several(part: Tensor, shapes: Sequence[Sequence[int]], *, singly: bool) -> list[Tensor]:
    """The tensors of a group, of `shapes`, that the workers hold flat parts of, on every worker; all call it alike."""
    numels = [torch.Size(shape).numel() for shape in shapes]
    parts = gather_equal(part)
    wholes = [torch.empty(numel, dtype=part.dtype, device=part.device) for numel in numels]
    for rank, held in enumerate(parts):
        for at in stretches(rank, len(parts), numels, part.numel(), singly=singly):
            wholes[at.tensor][at.first : at.last] = held[at.place : at.place + at.last - at.first]
    return [whole.view(*shape) for whole, shape in zip(wholes, shapes, strict=True)]


def own_part(whole: Tensor, numel: int) -> Tensor:
    """This worker's flat part of `numel` values, padding included."""
    first = first_of_part(numel)
    piece = whole.flatten()[first : first + numel]
    if piece.numel() == numel:
        return piece
    return torch.cat([piece, piece.new_zeros(numel - piece.numel())])


def first_of_part(numel: int) -> int:
    """Where in the flat tensor this worker's part of `numel` values begins."""
    return numel * own_rank()


def num_workers() -> int:
    """How many workers there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0
