"""Row-wise Adagrad for one table that a worker holds whole, or a flat part of (ZeRO): one accumulator a row.

    accumulator[row] <- accumulator[row] + mean(gradient[row] ** 2)
    table[row]       <- table[row] - lr * gradient[row] / (sqrt(accumulator[row]) + eps)

as TorchRec (`torchrec.optim.RowWiseAdagrad`) and FBGEMM (`EXACT_ROWWISE_ADAGRAD`) define it, without weight decay. Rows
without a gradient stay as they are. ZeRO cuts a table in the middle of rows, so each worker adds up the squares that it
holds and the workers sum them: one number a row. Every worker keeps all accumulators, which is 1 / dim of the table.
"""

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from genrec.training.flat_parts import first_of_part


def rowwise_adagrad_step(table: Tensor, accumulators: Tensor, group: dict[str, Any]) -> None:
    """One update of a table with a gradient and of its accumulators [rows]; the one of `shapes` is its whole shape."""
    ((num_rows, dim),) = group["shapes"]
    gradient = table.grad
    assert gradient is not None
    if table.dim() == 2:
        accumulators += gradient.square().mean(dim=1)
        table.sub_(gradient * _rates(accumulators, group).unsqueeze(1))
        return
    first = first_of_part(table.numel())
    lead, first_row = first % dim, first // dim
    rows = F.pad(gradient, (lead, -(lead + table.numel()) % dim)).view(-1, dim)  # [rows that the part touches, dim]
    end_row = max(num_rows, first_row + len(rows))  # a part may end in padding, or hold nothing else
    squares = gradient.new_zeros(end_row)
    squares[first_row : first_row + len(rows)] = rows.square().sum(dim=1)
    squares = squares[:num_rows]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    accumulators += squares / dim
    rates = F.pad(_rates(accumulators, group), (0, end_row - num_rows))[first_row : first_row + len(rows)]
    table.sub_((rows * rates.unsqueeze(1)).flatten()[lead : lead + table.numel()])


def _rates(accumulators: Tensor, group: dict[str, Any]) -> Tensor:
    rates: Tensor = group["lr"] / (accumulators.sqrt() + group["eps"])
    return rates
