"""An item table of which each worker holds some rows: for catalogues whose table is too large to hold everywhere.

For evaluation only: it looks items up and gives its rows to be scored, and knows nothing of gradients or losses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrec.evaluation.workers import Workers
from genrec.models.base import SequenceModel
from genrec.models.item_table import ItemTable


class ShardedItemTable(ItemTable):
    """Rows `first` .. `first + len(rows) - 1` of a table of `num_items + 1`; the other workers hold the rest."""

    def __init__(self, rows: Tensor, num_items: int, workers: Workers, *, l2_normalize: bool) -> None:
        """`rows` [num_rows, dim] are the ones that `shard_of` gives this worker."""
        nn.Module.__init__(self)  # ItemTable's own would make the whole table
        self.num_items = self.num_train_items = num_items
        self.dim = rows.shape[1]
        self.l2_normalize = l2_normalize
        self.workers = workers
        self.first = shard_of(num_items, workers)[0]
        self.weight = nn.Parameter(rows, requires_grad=False)

    @property
    def rows(self) -> Tensor:
        """This worker's rows, [num_rows, dim]."""
        return self.weight

    def embed(self, items: Tensor) -> Tensor:
        """Vectors [num_tokens, dim] of `items` [num_tokens], wherever their rows are; every worker calls it together.

        The workers' different items are answered one worker after another, so no more than those of one are held.
        """
        different, places = torch.unique(items, return_inverse=True)
        mine = torch.zeros(0, self.dim, device=self.weight.device)
        for source, asked in enumerate(self.workers.gather_rows(different)):
            own = (asked >= self.first) & (asked < self.first + self.weight.shape[0])
            vectors = torch.zeros(asked.shape[0], self.dim, dtype=self.weight.dtype, device=self.weight.device)
            vectors[own] = self.weight[asked[own] - self.first]
            vectors = self.workers.sum(vectors)  # exact: all but one add zero
            if source == self.workers.rank:
                mine = vectors
        return mine[places]

    def scores(self, hidden: Tensor) -> Tensor:
        """Not possible: no worker has the whole table."""
        raise NotImplementedError("a table that is shared out is scored by ranking.rank_users")


def shard_of(num_items: int, workers: Workers) -> tuple[int, int]:
    """The rows `[first, end)` of the table that this worker holds; each has some where there are enough."""
    num_rows = num_items + 1
    return num_rows * workers.rank // workers.count, num_rows * (workers.rank + 1) // workers.count


def share_out(model: SequenceModel, rows_of: Callable[[range], Tensor], num_items: int, workers: Workers) -> None:
    """Gives the model this worker's part of the table of `num_items` + 1 rows in place of its own item table.

    `rows_of` gives the rows of a part, [len(part), dim], in memory of their own.
    """
    rows = rows_of(range(*shard_of(num_items, workers)))
    device = next(model.parameters()).device
    model.item_table = ShardedItemTable(rows.to(device), num_items, workers, l2_normalize=model.item_table.l2_normalize)
