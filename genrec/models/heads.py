"""Tasks besides the next item: what happens to the next event, given which item it is.

A head reads the hidden state h of a position, which has seen the events up to it, and the vector e of the next event's
item: x = [h ; sqrt(dim) e], the item scaled as at the input of a model. The item has to be given, because an action is
an answer to an item: whoever ranks asks "if this one is played now, will it be skipped?". The ranking form of HSTU
(Zhai et al., 2024, arXiv 2402.17152) puts items and actions into one sequence of twice the length, so that the hidden
state after an item knows it; here the two meet in the head, late, and the sequence keeps its length.

Every next event teaches the heads, also one whose action is not chosen for the item loss (`sequence.target_actions`) or
weighs little there: skips are what the action head is to learn. All count alike.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config import HeadsConfig
from genrec.data.batch import Batch
from genrec.losses.full import at_least_fp32
from genrec.models.event_features import NUM_CODES
from genrec.models.item_table import ItemTable


class ActionScores(nn.Module):
    """A linear layer with one row for every possible code; the rows of actions that there are answer."""

    def __init__(self, dim: int, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.weight = nn.Parameter(torch.empty(NUM_CODES, dim))
        self.bias = nn.Parameter(torch.zeros(NUM_CODES))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [num_rows, num_actions] of the codes 1 .. num_actions."""
        codes = slice(1, self.num_actions + 1)
        return F.linear(x, self.weight[codes], self.bias[codes])


class ActionHead(nn.Module):
    """W_2 SiLU(W_1 x + b_1) + b_2 as scores of the actions; its loss is cross entropy."""

    def __init__(self, dim: int, num_actions: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * dim, dim)
        self.scores = ActionScores(dim, num_actions)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities [num_rows, num_actions] of the codes 1 .. num_actions, in fp32 or wider."""
        scores: Tensor = self.scores(F.silu(self.inner(x)))
        return F.log_softmax(at_least_fp32(scores), dim=1)


class DwellHead(nn.Module):
    """W_2 SiLU(W_1 x + b_1) + b_2 as log(1 + seconds); it begins at a minute.

    Its loss is Huber's with delta 1: the square up to an error of a factor e, then the error itself, so that a player
    that was left running does not pull on everything.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * dim, dim)
        self.output = nn.Linear(dim, 1)
        nn.init.constant_(self.output.bias, math.log1p(60))

    def forward(self, x: Tensor) -> Tensor:
        """log(1 + seconds) [num_rows], in fp32 or wider."""
        return at_least_fp32(self.output(F.silu(self.inner(x))).squeeze(1))


class Heads(nn.Module):
    """The heads that `HeadsConfig` asks for."""

    def __init__(self, config: HeadsConfig, dim: int, num_actions: int) -> None:
        """`num_actions` are those of the prepared set; a model that only recommends needs none."""
        super().__init__()
        self.weights = config.weights
        self.scale = math.sqrt(dim)
        self.action = ActionHead(dim, num_actions) if config.action is not None else None
        self.dwell = DwellHead(dim) if config.dwell is not None else None

    def inputs(self, hidden: Tensor, items: Tensor, item_table: ItemTable) -> Tensor:
        """What heads read, [num_rows, 2 * dim], for `hidden` [num_rows, dim] and the next `items` [num_rows]."""
        return torch.cat([hidden, self.scale * item_table.embed(items).to(hidden.dtype)], dim=1)

    def losses(self, hidden: Tensor, batch: Batch, item_table: ItemTable) -> dict[str, Tensor]:
        """The summed loss of each task over a micro-batch, times what makes the step's weight its divisor.

        The engine divides by `step_weight`, so that each task becomes the mean over its own events of the whole step.
        """
        if batch.next_items is None or batch.next_actions is None or not batch.step_weight:
            raise ValueError("heads learn from the next events and the sums of a step, and this batch has none of them")
        x = self.inputs(hidden, batch.next_items, item_table)
        found: dict[str, Tensor] = {}
        if self.action is not None:
            rows = (batch.next_actions > 0).nonzero().squeeze(1)
            codes = batch.next_actions.index_select(0, rows) - 1
            total = F.nll_loss(self.action(x.index_select(0, rows)), codes, reduction="sum")
            found["action"] = total * (batch.step_weight / batch.step_actions)
        if self.dwell is not None:
            if batch.next_values is None:
                raise ValueError("the dwell head learns from the next events' values, and this batch has none of them")
            rows = batch.next_values.isfinite().nonzero().squeeze(1)
            predicted = self.dwell(x.index_select(0, rows))
            wanted = torch.log1p(batch.next_values.index_select(0, rows).to(predicted.dtype))
            total = F.huber_loss(predicted, wanted, reduction="sum")
            found["dwell"] = total * (batch.step_weight / batch.step_values)
        return found
