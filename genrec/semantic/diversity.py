"""Beams that do not all say the same: a bound on how many may share a prefix."""

import torch
from torch import Tensor

from genrec.semantic.order import NOTHING


def best_with_cap(keys: Tensor, groups: Tensor, count: int, cap: int) -> tuple[Tensor, Tensor]:
    """The `count` largest keys of each row of which no group has more than `cap`, and their places, as `topk`.

    `keys` int64 [num_users, width, num_columns] (see order.py), all of a beam in one group: `groups` int64
    [num_users, width]. Both results are [num_users, count], the places among width * num_columns; where the cap
    leaves fewer, keys are NOTHING. The result is what taking keys from the largest down, and passing over those whose
    group is full, would give.
    """
    num_columns = keys.shape[2]
    best, columns = keys.topk(min(cap, num_columns), dim=2)  # a beam cannot give more than its group may have
    width = best.shape[2]
    places = (torch.arange(keys.shape[1], device=keys.device).unsqueeze(1) * num_columns + columns).flatten(1)
    of_beam = groups.unsqueeze(2).expand(-1, -1, width).flatten(1)
    best, order = best.flatten(1).sort(dim=1, descending=True)
    by_group, order_in_groups = of_beam.gather(1, order).sort(dim=1, stable=True)
    first = torch.searchsorted(by_group, by_group)  # where the group begins
    place_in_group = torch.arange(by_group.shape[1], device=keys.device) - first
    is_beyond = torch.zeros_like(place_in_group, dtype=torch.bool)
    is_beyond.scatter_(1, order_in_groups, place_in_group >= cap)
    best = best.masked_fill(is_beyond, NOTHING)
    found, chosen = best.topk(min(count, best.shape[1]), dim=1)
    return found, places.gather(1, order.gather(1, chosen))
