"""Attention of beams: every beam of a user reads that user's history, which is kept once, and its own few codes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class History:
    """Keys and values of users' histories, [num_users, num_heads, length, head_dim], right-padded.

    `hidden` [num_users, 1, 1, length] is -inf where there is padding, else 0; None where there is none.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Codes:
    """Keys and values of the codes of each beam so far, [num_users, width, num_codes, num_heads, head_dim]."""

    keys: Tensor
    values: Tensor

    def continued(self, parents: Tensor, keys: Tensor, values: Tensor) -> "Codes":
        """Those of the beams that continue `parents` [num_users, width] by one code each.

        `keys` and `values` [num_users, width, num_heads, head_dim] are the new code's.
        """
        users = torch.arange(parents.shape[0], device=parents.device).unsqueeze(1)
        return Codes(
            torch.cat([self.keys[users, parents], keys.unsqueeze(2)], dim=2),
            torch.cat([self.values[users, parents], values.unsqueeze(2)], dim=2),
        )


def first_codes(keys: Tensor, values: Tensor) -> Codes:
    """The cache of beams with one code each; `keys` and `values` [num_users, width, num_heads, head_dim]."""
    return Codes(keys.unsqueeze(2), values.unsqueeze(2))


def read(
    queries: Tensor, history: History | None, codes: Codes | None, scale: float, bias: Tensor | None = None
) -> Tensor:
    """What the newest code of each beam reads, [num_users, width, num_heads * head_dim].

    `queries` [num_users, width, num_heads, head_dim]; keys and values may have fewer heads, neighbouring queries then
    share one. `bias` [num_heads, num_codes] is added to the scores of the beam's own codes.
    """
    num_users, width, num_heads, head_dim = queries.shape
    scores = []
    if history is not None:
        q = queries.view(num_users, width, history.keys.shape[1], -1, head_dim)
        found = torch.einsum("uwhgd,uhsd->uwhgs", q, history.keys).flatten(2, 3) * scale
        scores.append(found if history.hidden is None else found + history.hidden)
    if codes is not None:
        q = queries.view(num_users, width, codes.keys.shape[3], -1, head_dim)
        found = torch.einsum("uwhgd,uwnhd->uwhgn", q, codes.keys).flatten(2, 3) * scale
        scores.append(found if bias is None else found + bias)
    weights = torch.cat(scores, dim=3).softmax(dim=3)  # [num_users, width, num_heads, length + num_codes]
    out = queries.new_zeros(num_users, width, num_heads, head_dim)
    length = 0
    if history is not None:
        length = history.keys.shape[2]
        w = weights[..., :length].reshape(num_users, width, history.keys.shape[1], -1, length)
        out = out + torch.einsum("uwhgs,uhsd->uwhgd", w, history.values).flatten(2, 3)
    if codes is not None:
        w = weights[..., length:].reshape(num_users, width, codes.keys.shape[3], -1, codes.keys.shape[2])
        out = out + torch.einsum("uwhgn,uwnhd->uwhgd", w, codes.values).flatten(2, 3)
    return out.flatten(2)
