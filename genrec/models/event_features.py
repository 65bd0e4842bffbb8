"""What an event says besides its item: learned vectors for its action, its item's type and its time.

They are added to the item vectors at the input, so a position knows these things of the events up to itself and
nothing of the event that it predicts.
"""

import torch
from torch import Tensor, nn

from genrec.config import InputsConfig
from genrec.data.batch import Batch
from genrec.errors import ConfigError
from genrec.models.jagged import JaggedLayout

NUM_CODES = 256  # actions and item types are one byte; all rows exist, so that later names fit a trained model
NUM_GAP_BUCKETS = 40  # powers of two of a second: the last one begins after 8,700 years
_SECONDS_PER_HOUR = 3_600
_FIRST_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0


class EventFeatures(nn.Module):
    """The sum of the vectors that `InputsConfig` asks for."""

    def __init__(self, config: InputsConfig, dim: int, *, std: float, item_types: Tensor | None) -> None:
        """`item_types` [num_items + 1] is the type code of every item, uint8; needed for `item_types` only."""
        super().__init__()
        if config.item_types and item_types is None:
            raise ConfigError("inputs.item_types=true needs item types, and there are none; set it to false.")
        rows = {
            "action": NUM_CODES * config.actions,
            "item_type": NUM_CODES * config.item_types,
            "gap": NUM_GAP_BUCKETS * ("gap" in config.time_features),
            "hour": 24 * ("hour" in config.time_features),
            "weekday": 7 * ("weekday" in config.time_features),
        }
        self.tables = nn.ModuleDict()
        for name, size in rows.items():
            if size:
                self.tables[name] = table = nn.Embedding(size, dim)
                nn.init.normal_(table.weight, std=std)
        self.register_buffer("item_types", item_types.clone() if config.item_types and item_types is not None else None)

    def forward(self, batch: Batch, layout: JaggedLayout) -> Tensor:
        """The summed vectors, [num_tokens, dim]."""
        total: Tensor | None = None
        for name, table in self.tables.items():
            vectors = table(self._codes(name, batch, layout))
            total = vectors if total is None else total + vectors
        assert total is not None, "made only when a feature is asked for"
        return total

    def _codes(self, name: str, batch: Batch, layout: JaggedLayout) -> Tensor:
        """Row of the table `name` for each event, [num_tokens]."""
        if name == "action":
            return batch.actions
        if name == "item_type":
            assert isinstance(self.item_types, Tensor)
            return self.item_types[batch.items].long()
        if name == "gap":
            return gap_buckets(batch.times, layout.positions)
        hours = torch.div(batch.times, _SECONDS_PER_HOUR, rounding_mode="floor")
        if name == "hour":
            return hours % 24
        return (torch.div(hours, 24, rounding_mode="floor") + _FIRST_WEEKDAY) % 7


def gap_buckets(times: Tensor, positions: Tensor) -> Tensor:
    """Bucket of the time since the event before, [num_tokens]; 0 for the first event of a window.

    Bucket b holds gaps of 2^(b - 1) - 1 to 2^b - 2 seconds: 0 is in 1, 1 and 2 in 2, 3 to 6 in 3.
    """
    gaps = torch.diff(times, prepend=times[:1]).clamp(min=0)
    buckets = torch.floor(torch.log2((gaps + 1).double())).long() + 1
    return torch.where(positions == 0, 0, buckets.clamp(max=NUM_GAP_BUCKETS - 1))
