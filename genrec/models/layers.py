"""Small parts that the models share: dropout, the gated feed-forward part, the input layer."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config import InputsConfig
from genrec.data.batch import Batch
from genrec.errors import DataError
from genrec.models.event_features import EventFeatures
from genrec.models.jagged import JaggedLayout


def keep_mask(like: Tensor, p: float) -> Tensor:
    """A dropout factor for every element of `like`: 0 with probability `p`, else 1 / (1 - p); same dtype and device.

    On a CPU 16 random bits decide an element, so `p` is taken to the nearest 1/65536 and the factor is exact for that.
    Torch's own CPU dropout draws a whole Mersenne-Twister number an element, in one thread: 12 ns against 2 ns here,
    which would be a quarter of a training step. Draws from torch's default generator.
    """
    if like.device.type != "cpu":
        return F.dropout(torch.ones_like(like), p)
    num_elements = like.numel()
    num_dropped_values = min(round(p * 2**16), 2**16 - 1)
    words = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:num_elements].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(bits, num_dropped_values - 2**15, out=mask)
    return mask.mul_(2**16 / (2**16 - num_dropped_values))


class Dropout(nn.Module):
    """Dropout with probability `p` while training, by `keep_mask`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """`x` with elements dropped while training, unchanged otherwise."""
        return x * keep_mask(x, self.p) if self.training and self.p > 0 else x


class SwiGLU(nn.Module):
    """The gated feed-forward part W_c dropout(SiLU(W_g x) * W_u x), without biases (Shazeer, 2020)."""

    def __init__(self, dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * inner_dim, bias=False)  # W_g above W_u
        self.contract = nn.Linear(inner_dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The part's output, [num_tokens, dim]."""
        gate, up = self.expand(x).chunk(2, dim=1)
        out: Tensor = self.contract(self.dropout(F.silu(gate) * up))
        return out


@dataclass(frozen=True, slots=True)
class Inputs:
    """Which events' properties a model reads, and the type code of every item [num_items + 1] where it reads types."""

    config: InputsConfig
    item_types: Tensor | None = None

    @property
    def reads_times(self) -> bool:
        """Whether an input is made of the events' times."""
        return bool(self.config.time_features)


NO_INPUTS = Inputs(InputsConfig())


class InputLayer(nn.Module):
    """Item vectors times sqrt(dim), plus a learned vector of the place in the window (counted from its start) unless
    `positions` is false, plus what `EventFeatures` adds; the vectors begin as N(0, std)."""

    def __init__(
        self,
        max_length: int,
        dim: int,
        dropout: float,
        *,
        std: float,
        positions: bool = True,
        inputs: Inputs = NO_INPUTS,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.scale = math.sqrt(dim)
        self.positions = nn.Parameter(torch.empty(max_length, dim)) if positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions, std=std)
        self.features = (
            EventFeatures(inputs.config, dim, std=std, item_types=inputs.item_types) if inputs.config.names else None
        )
        self.dropout = Dropout(dropout)

    def forward(self, item_vectors: Tensor, batch: Batch, layout: JaggedLayout) -> Tensor:
        """Input of the first layer, [num_tokens, dim]; raises DataError for a sequence beyond `max_length`."""
        if layout.max_length > self.max_length:
            raise DataError(
                f"a sequence of {layout.max_length} events is longer than the model's window of {self.max_length}; "
                f"pass the last {self.max_length} events or raise sequence.max_length"
            )
        x = item_vectors * self.scale
        if self.positions is not None:
            x = x + F.embedding(layout.positions, self.positions)
        if self.features is not None:
            x = x + self.features(batch, layout)
        dropped: Tensor = self.dropout(x)
        return dropped
