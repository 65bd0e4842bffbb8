"""The item table of items whose content is known: learned vectors of their ids beside frozen vectors of their content.

    e_i = s_i E_i + W x_i + a_i u

    E  [num_items + 1, dim]    learned by id                         x  [num_items + 1, vector_dim]  frozen, 0: none
    W  [dim, vector_dim]       learned, takes content to items       s  1, or 0 where the id counts for nothing
    u  [dim]                   learned, what no content looks like   a  1 for items without a vector, else 0

Nothing teaches the id of an item without a training event, so it is noise, and s_i is 0: such an item is known by x_i.
To be found there, others must be known by theirs, too: in training s_i is 0 with probability `id_dropout` for each item
that has a vector, drawn anew for every use (Volkovs et al., 2017, DropoutNet).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrec.config import ItemVectorInputs
from genrec.data.item_vectors import ItemVectors
from genrec.models.base import SequenceModel
from genrec.models.item_table import ItemTable

PROJECTION_STD = 0.02  # a vector of length 1 then begins as long as the row of an id
_SETTLED_ROWS = 65_536


class FusedItemTable(ItemTable):
    """Takes the place of a plain table and is used as one is. x, and what s and a are made of, are in no checkpoint."""

    vectors: Tensor
    is_trained: Tensor
    has_none: Tensor

    def __init__(
        self, table: ItemTable, vectors: Tensor, is_trained: Tensor, config: ItemVectorInputs, first: int = 0
    ) -> None:
        """Takes over the rows of `table`; `vectors` [num_items + 1, vector_dim] are x, `is_trained` [num_items + 1].

        With `first` these are some rows of a larger table, from that one on.
        """
        nn.Module.__init__(self)  # ItemTable's own would make the table again
        self.num_items, self.num_train_items = table.num_items, table.num_train_items
        self.train_counts, self.target_shares = table.train_counts, table.target_shares
        self.dim, self.l2_normalize = table.dim, table.l2_normalize
        self.ids, self.id_dropout = config.ids, config.id_dropout
        self.weight = table.weight
        self.projection = nn.Parameter(torch.empty(table.dim, vectors.shape[1]))
        self.missing = nn.Parameter(torch.zeros(table.dim))
        nn.init.normal_(self.projection, std=PROJECTION_STD)
        has_none = torch.cat([~part.any(dim=1) for part in torch.split(vectors, _SETTLED_ROWS)])
        if first == 0:
            has_none[0] = False  # padding stays zero
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("is_trained", is_trained, persistent=False)
        self.register_buffer("has_none", has_none, persistent=False)

    def forward(self, use: Callable[[Tensor], Tensor], items: Tensor | None = None) -> Tensor:
        """`use` of e_i for all items, or for `items` [n] only; one that comes twice is the same both times."""
        if items is None:
            return use(self._rows(slice(None), self._counts_id(slice(None))))
        different, places = torch.unique(items, return_inverse=True)
        return use(self._rows(different, self._counts_id(different)).index_select(0, places))

    def settled(self) -> Tensor:
        """e_i of every item as evaluation sees it, [num_items + 1, dim], without gradient; some rows at a time."""
        rows = torch.empty_like(self.weight, requires_grad=False)
        with torch.no_grad():
            for first in range(0, len(rows), _SETTLED_ROWS):
                part = slice(first, first + _SETTLED_ROWS)
                rows[part] = self._rows(part, self._id_is_known(part))
        return rows

    def _id_is_known(self, items: slice | Tensor) -> Tensor:
        return self.is_trained[items] if self.ids else self.is_trained[items] & self.has_none[items]

    def _counts_id(self, items: slice | Tensor) -> Tensor:
        """s of `items`, boolean."""
        known = self._id_is_known(items)
        if not self.training or self.id_dropout == 0:
            return known
        kept = torch.rand(known.shape, device=known.device) >= self.id_dropout
        return known & (kept | self.has_none[items])

    def _rows(self, items: slice | Tensor, counts_id: Tensor) -> Tensor:
        """e of `items`, in the type of the weights also under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            by_id = self.weight[items] * counts_id.unsqueeze(1)
            none = self.has_none[items].unsqueeze(1) * self.missing
            vectors = self.vectors[items].to(self.weight.dtype)  # ZeRO-3 makes weights bf16 and leaves buffers
            return torch.addmm(by_id + none, vectors, self.projection.T)


def settled_rows(
    model: SequenceModel, table: Tensor, item_vectors: ItemVectors, config: ItemVectorInputs, part: range
) -> Tensor:
    """Rows `part` of the settled form of a table whose ids are `table` [num_items + 1, dim], without making the rest.

    The model's own table, of any size, has the projection. Returns [len(part), dim].
    """
    fused = model.item_table
    assert isinstance(fused, FusedItemTable)
    own = ItemTable(0, fused.dim)
    own.weight = nn.Parameter(table[part.start : part.stop], requires_grad=False)
    vectors, is_trained = (torch.from_numpy(array[part.start : part.stop]) for array in item_vectors)
    rows = FusedItemTable(own, vectors, is_trained, config, part.start)
    rows.projection, rows.missing = fused.projection, fused.missing
    return rows.eval().settled()


def settle(model: SequenceModel) -> None:
    """Gives a model that is not trained any more a plain table with the same rows; its vectors are then not needed."""
    fused = model.item_table
    if not isinstance(fused, FusedItemTable):
        return
    table = ItemTable(0, fused.dim, l2_normalize=fused.l2_normalize)
    table.num_items, table.num_train_items = fused.num_items, fused.num_train_items
    table.train_counts, table.target_shares = fused.train_counts, fused.target_shares
    table.weight = nn.Parameter(fused.settled(), requires_grad=False)
    model.item_table = table
