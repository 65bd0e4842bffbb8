"""Generated candidates in the order of dense scores, with items that were never generated beside them.

LIGER's idea (arXiv 2411.18814): a model over codes seldom generates items that it has not seen in training, and its
sums of log-probabilities order close items badly. So a beam only proposes; the items it proposes and all cold
items are scored by the dot product of the user's hidden state and the item's vector. What stays cheap is that the
vectors of width + cold items are read for each user, and not those of the catalogue.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genrec.semantic.order import NOTHING, is_something, numbers_of, order_keys, scores_of

ItemVectors = Callable[[Tensor], Tensor]
"""Vectors [num_items, dim] of items [num_items]."""


def rerank(
    hidden: Tensor,
    candidates: Tensor,
    vectors: ItemVectors,
    k: int,
    *,
    cold_items: Tensor | None = None,
    exclude: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best of `candidates` and `cold_items` by dense score: items [num_users, k] int64 and scores, best first.

    `hidden` [num_users, dim]; `candidates` [num_users, num_candidates] int64 as `beam_search` gives them, each once, 0
    for none; `cold_items` [num_cold] item indices that every user is asked about too; `exclude` (row of a user,
    item index) of pairs that must not come back. Equal scores stand by item index; 0 and -inf where fewer are left.
    """
    num_users, device = candidates.shape[0], candidates.device
    found = vectors(candidates.flatten()).view(*candidates.shape, -1)
    scores = (found.float() @ hidden.float().unsqueeze(2)).squeeze(2)
    scores = scores.masked_fill(candidates == 0, -float("inf"))
    items = candidates
    if cold_items is not None and cold_items.shape[0]:
        cold = torch.unique(cold_items.to(device))
        is_cold = torch.isin(candidates, cold)  # they are scored among the cold ones
        scores = scores.masked_fill(is_cold, -float("inf"))
        scores = torch.cat([scores, hidden.float() @ vectors(cold).float().T], dim=1)
        items = torch.cat([items, cold.expand(num_users, -1)], dim=1)
    if exclude is not None:
        rows, excluded = exclude[0].to(device), exclude[1].to(device)
        entry, column = (items[rows] == excluded.unsqueeze(1)).nonzero(as_tuple=True)
        scores[rows[entry], column] = -float("inf")
    keys = order_keys(scores.nan_to_num(-float("inf"), float("inf"), -float("inf")), items)
    best = keys.new_full((num_users, k), NOTHING)
    chosen = keys.topk(min(k, keys.shape[1]), dim=1).values
    best[:, : chosen.shape[1]] = chosen
    is_item = is_something(best)
    return torch.where(is_item, numbers_of(best), 0), torch.where(is_item, scores_of(best), -float("inf"))
