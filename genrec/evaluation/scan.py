"""The best of a chunk of scores, in as few passes over it as torch has.

Block b of a chunk of `num_blocks` blocks is its columns b, b + num_blocks, b + 2 num_blocks, ...: the largest of each
is a maximum of whole rows of memory, three times as fast as one within neighbours. The last columns, fewer than
`BLOCK`, are in no block.
"""

import torch
from torch import Tensor

from genrec.evaluation.metrics import count_true
from genrec.semantic.order import order_keys

BLOCK = 16  # columns whose best score stands for them while the best items are looked for


def block_maxima(scores: Tensor) -> Tensor:
    """The largest score of every block, [num_rows, num_blocks]; NaN where one of it is."""
    num_blocks = scores.shape[1] // BLOCK
    return scores[:, : num_blocks * BLOCK].view(len(scores), BLOCK, num_blocks).amax(dim=1)


def best_keys(scores: Tensor, maxima: Tensor, first: int, k: int, least: Tensor) -> Tensor:
    """Keys (semantic/order.py) of the k best of each row, [num_rows, at most k]; column c is item `first + c`.

    `maxima` are of the blocks. Scores below `least` [num_rows] are not wanted, nor is -inf, and a row has
    anything in the place of those. Whatever is wanted lies in blocks whose largest score is, so only the blocks of the
    row that has most of them are searched in each row; all columns where that is no gain.
    """
    num_rows, num_columns = scores.shape
    num_blocks = maxima.shape[1]
    columns = torch.arange(num_columns, device=scores.device).expand(num_rows, -1)
    if num_blocks > k:
        if bool(least.isinf().any()):  # k items score as much as the k-th best block does
            least = torch.maximum(least, maxima.topk(k, dim=1).values[:, -1])
        wanted = (maxima >= least.unsqueeze(1)) & (maxima > -float("inf"))
        num_chosen = int(count_true(wanted).max())
        if 2 * num_chosen < num_blocks:
            chosen = maxima.topk(num_chosen, dim=1, sorted=False).indices
            members = chosen.unsqueeze(2) + num_blocks * torch.arange(BLOCK, device=scores.device)
            columns = torch.cat([members.flatten(1), columns[:, num_blocks * BLOCK :]], dim=1)
            scores = scores.gather(1, columns)
    keys = order_keys(scores, columns + first)
    return keys.topk(min(k, keys.shape[1]), dim=1).values
