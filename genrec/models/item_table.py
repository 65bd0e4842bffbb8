"""The item table: looks items up and scores them. All uses of its weight happen inside its own `forward`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ItemTable(nn.Module):
    """Item vectors [num_items + 1, dim]; row 0 is padding and stays zero.

    ZeRO-3 gathers a weight when its module is *called*, so every use goes through `self(use)`, where `use` receives the
    rows of all items, or through `self(use, items)`, where it receives theirs: look-up, scoring, and the losses.
    """

    def __init__(self, num_items: int, dim: int, *, std: float = 0.02, l2_normalize: bool = False) -> None:
        super().__init__()
        self.num_items = num_items
        self.num_train_items = num_items
        """Items 1 .. num_train_items are what a loss may compare with; a global-time split hides the others."""
        self.train_counts: Tensor | None = None
        """[num_items + 1] events of each item in training, on the CPU, where a loss asks for it (negatives.py)."""
        self.target_shares: Tensor | None = None
        """[num_items + 1] fp64, on the CPU: shares of the targets, where they are not those of `train_counts`."""
        self.dim = dim
        self.l2_normalize = l2_normalize
        self.weight = nn.Parameter(torch.empty(num_items + 1, dim))
        with torch.no_grad():
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
            self.weight[0].zero_()

    def forward(self, use: Callable[[Tensor], Tensor], items: Tensor | None = None) -> Tensor:
        """`use(rows)` of all rows, or of those of `items` [n]; these send no gradient to the padding row."""
        return use(self.weight if items is None else F.embedding(items, self.weight, padding_idx=0))

    def known(self, weight: Tensor) -> Tensor:
        """The rows of padding and of the items that a loss may compare with."""
        return weight if self.num_train_items == self.num_items else weight[: self.num_train_items + 1]

    def embed(self, items: Tensor) -> Tensor:
        """Vectors [num_tokens, dim] of `items` [num_tokens]; no gradient reaches the padding row."""
        vectors: Tensor = self(lambda rows: rows, items)
        return vectors

    def normalized(self, vectors: Tensor) -> Tensor:
        """`vectors` as they are scored: of length 1 when the table is cosine, else unchanged."""
        return F.normalize(vectors, dim=-1, eps=1e-6) if self.l2_normalize else vectors

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores [num_rows, num_items + 1] of every item, in fp32; column 0 is padding and means nothing."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores: Tensor = self(lambda weight: self.normalized(hidden.float()) @ self.normalized(weight.float()).T)
        return scores


class NoItemTable(ItemTable):
    """Stands where a model has no vectors of items: it knows how many items there are, and has no weight."""

    def __init__(self, num_items: int, dim: int) -> None:
        nn.Module.__init__(self)  # ItemTable's own would make the table
        self.num_items = self.num_train_items = num_items
        self.train_counts = self.target_shares = None
        self.dim = dim
        self.l2_normalize = False
