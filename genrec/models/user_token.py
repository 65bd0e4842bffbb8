"""A token of the user before the history: users share the rows of a small table by a hash, as in TIGER.

    row(user) = 1 + splitmix64(user index) mod rows        0 where nobody knows who it is

The table does not grow with the users, and a user who joins later has a row that others have trained. Row 0 is trained
by the windows whose user is left out, `dropout` of them, drawn anew in every pass.
"""

import numpy as np
import torch
from torch import Tensor, nn

from genrec.config_sequences import UserInputs
from genrec.data.batch import Batch
from genrec.data.user_hashes import user_hashes


class UserToken(nn.Module):
    """The vectors of users; they begin as N(0, std)."""

    def __init__(self, config: UserInputs, dim: int, *, std: float) -> None:
        super().__init__()
        self.num_rows, self.dropout = config.rows, config.dropout
        self.table = nn.Embedding(config.rows + 1, dim)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, batch: Batch) -> Tensor:
        """A vector for each sequence, [num_sequences, dim]."""
        rows = self.rows_of(batch)
        if self.training and self.dropout > 0:
            rows = rows * (torch.rand(rows.shape) >= self.dropout)
        vectors: Tensor = self.table(rows.to(self.table.weight.device))
        return vectors

    def rows_of(self, batch: Batch) -> Tensor:
        """The row of each sequence's user, int64 [num_sequences], on the CPU; 0 where the user is not known."""
        users = batch.users
        if users is None or len(users) != batch.num_sequences:  # a micro-batch without windows has no users
            return torch.zeros(batch.num_sequences, dtype=torch.int64)
        indices = users.cpu().numpy()
        hashed = (user_hashes(indices) % np.uint64(self.num_rows)).astype(np.int64) + 1
        return torch.from_numpy(np.where(indices >= 0, hashed, 0))


def before_sequences(firsts: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences with one row more at the beginning: their rows, their borders, and the places of the rows of `x`.

    `firsts` [num_sequences, dim] are the new rows, `x` [num_rows, dim] the others, with borders `offsets`. One gather,
    so its gradient has the same bits on every run.
    """
    num_sequences, num_rows = len(firsts), len(x)
    sequences = torch.arange(num_sequences, device=x.device)
    rows = torch.arange(num_rows, device=x.device)
    places = rows + torch.repeat_interleave(sequences, offsets.diff(), output_size=num_rows) + 1
    order = torch.empty(num_sequences + num_rows, dtype=torch.int64, device=x.device)
    order[offsets[:-1] + sequences] = sequences
    order[places] = rows + num_sequences
    borders = offsets + torch.arange(num_sequences + 1, device=x.device)
    return torch.cat([firsts.to(x.dtype), x]).index_select(0, order), borders, places
