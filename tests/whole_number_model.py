"""A model without training whose scores are whole numbers: exact whatever the batch, and often tied."""

import torch
from torch import Tensor

from genrec.data.batch import Batch
from genrec.models.base import SequenceModel
from genrec.models.item_table import ItemTable

DIM = 4


def no_loss(hidden: Tensor, targets: Tensor, item_table: ItemTable, pool: Tensor | None = None) -> Tensor:
    """A loss for a model that is never trained."""
    raise AssertionError("the model of these tests is never trained")


class WholeNumberModel(SequenceModel):
    """The hidden state of an event is the sum, over the events up to it, of item vector times place in the window.

    With `uses_query_time` the query time is added to it. Records how many forward passes were made, and in what mode.
    """

    def __init__(self, num_items: int, *, uses_query_time: bool = False) -> None:
        super().__init__(ItemTable(num_items, DIM), no_loss)
        self.uses_query_time = uses_query_time
        self.num_passes = 0
        self.modes: set[bool] = set()
        generator = torch.Generator().manual_seed(num_items)
        with torch.no_grad():
            self.item_table.weight[1:] = torch.randint(-2, 3, (num_items, DIM), generator=generator).float()

    def encode(self, batch: Batch) -> Tensor:
        self.num_passes += 1
        self.modes.add(self.training)
        lengths = batch.offsets.diff()
        place = torch.arange(batch.num_tokens) - torch.repeat_interleave(batch.offsets[:-1], lengths) + 1
        terms = self.item_table.embed(batch.items) * place.unsqueeze(1)
        hidden = torch.cat([part.cumsum(0) for part in terms.split(lengths.tolist())])
        if self.uses_query_time:
            hidden = hidden + (batch.target_times % 7).unsqueeze(1)
        return hidden
