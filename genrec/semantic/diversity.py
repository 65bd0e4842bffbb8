"""Beams that do not all say the same: a bound on how many may share a prefix."""

import torch
from torch import Tensor

from genrec.semantic.order import NOTHING


def best_with_cap(values: Tensor, groups: Tensor, count: int, cap: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row of which no group has more than `cap`, and their places, as `topk`.

    `values` [num_users, width, num_columns] are sums or keys (order.py), all of a beam in one group: `groups` int64
    [num_users, width]. Both results are [num_users, count], the places among width * num_columns; where the cap leaves
    fewer, values are -inf or NOTHING. The result is what taking values from the largest down, and passing over those
    whose group is full, would give.
    """
    num_columns, device = values.shape[2], values.device
    best, columns = values.topk(min(cap, num_columns), dim=2)  # a beam cannot give more than its group may have
    width = best.shape[2]
    places = (torch.arange(values.shape[1], device=device).unsqueeze(1) * num_columns + columns).flatten(1)
    of_beam = groups.unsqueeze(2).expand(-1, -1, width).flatten(1)
    best, order = best.flatten(1).sort(dim=1, descending=True, stable=True)
    by_group, order_in_groups = of_beam.gather(1, order).sort(dim=1, stable=True)
    first = torch.searchsorted(by_group, by_group)  # where the group begins
    place_in_group = torch.arange(by_group.shape[1], device=device) - first
    is_beyond = torch.zeros_like(place_in_group, dtype=torch.bool)
    is_beyond.scatter_(1, order_in_groups, place_in_group >= cap)
    best = best.masked_fill(is_beyond, -float("inf") if best.is_floating_point() else NOTHING)
    found, chosen = best.topk(min(count, best.shape[1]), dim=1)
    return found, places.gather(1, order.gather(1, chosen))
