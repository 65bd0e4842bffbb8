"""What scores are divided by: a number of the config, or one that is learned between two bounds."""

import math

import torch
from torch import Tensor, nn

from genrec.config import LEARNED_TEMPERATURES


class Temperature(nn.Module):
    """Divides by a temperature that stays as it is, or is learned from there.

    What is learned is x in T = lowest * (highest / lowest)^sigmoid(x): no step can leave the bounds, and from every T
    there is a way back. At T = 0.1 or 1 a step of 0.001 in x changes T by 0.15%.
    """

    def __init__(self, start: float, *, learned: bool = False) -> None:
        super().__init__()
        self.start = start
        self.position: nn.Parameter | None = None
        if learned:
            lowest, highest = LEARNED_TEMPERATURES
            share = math.log(start / lowest) / math.log(highest / lowest)
            self.position = nn.Parameter(torch.full((1,), math.log(share / (1 - share))))

    def forward(self, rows: Tensor) -> Tensor:
        """`rows` divided by the temperature; its gradient reaches the temperature where that is learned."""
        return rows / (self.start if self.position is None else self.value(rows.dtype))

    def value(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The temperature, [1]."""
        if self.position is None:
            return torch.full((1,), self.start, dtype=dtype)
        lowest, highest = LEARNED_TEMPERATURES
        return lowest * torch.exp(math.log(highest / lowest) * torch.sigmoid(self.position.to(dtype)))
