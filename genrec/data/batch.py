"""`Batch`: the one meaning of a batch. Jagged: sequences one after another, `offsets` between them, no padding."""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class MicroBatchId(NamedTuple):
    """Names a micro-batch for ever: which epoch, which chunk of that epoch's plan, and its number in the chunk.

    A step that is dealt into another number of micro-batches has others, with numbers of their own.
    """

    epoch: int
    chunk: int
    position: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of events, one after another (contract 4).

    items          [num_tokens] int64           item indices, 1 .. num_items
    times          [num_tokens] int64           seconds
    actions        [num_tokens] int64           0 when the log has none
    targets        [num_tokens] int64           next item; -1 = no loss here
    target_times   [num_tokens] int64           time of the next event: the query time
    offsets        [num_sequences + 1] int64    borders of the sequences
    micro_batch_id                              None outside training
    step_targets                                targets of the whole global step
    step_weight                                 sum of their weights; the loss is divided by it
    step_actions                                next events of the whole step whose action is known
    step_values                                 those whose value is known
    users          [num_sequences] int64        who the windows belong to, -1 where unknown; None where all are
    starts         [num_sequences] int64        place of each window's first event in its user's history; None outside
    negatives      [num_negatives] int64        the step's pool of targets; None where no loss asks for one
    target_weights [num_tokens] float32         factor of each target's loss; None where all count alike
    next_items     [num_tokens] int64           item of the next event, a target or not; None where no head asks for it
    next_actions   [num_tokens] int64           its action, 0 where unknown; None likewise
    next_values    [num_tokens] float32         its value (seconds played), NaN where unknown; None likewise

    `users` are hashed on the CPU, `starts` name what was trained, for logs, and a loss prepares `negatives` on the CPU:
    they stay where they are when the batch moves to a device. A micro-batch without windows has one sequence of
    padding, and users and starts of length 0.
    """

    items: Tensor
    times: Tensor
    actions: Tensor
    targets: Tensor
    target_times: Tensor
    offsets: Tensor
    micro_batch_id: MicroBatchId | None = None
    step_targets: int = 0
    step_weight: float = 0.0
    step_actions: int = 0
    step_values: int = 0
    users: Tensor | None = None
    starts: Tensor | None = None
    negatives: Tensor | None = None
    target_weights: Tensor | None = None
    next_items: Tensor | None = None
    next_actions: Tensor | None = None
    next_values: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Real events in the batch."""
        return self.items.shape[0]

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch."""
        return self.offsets.shape[0] - 1

    @property
    def last_positions(self) -> Tensor:
        """Token index of each sequence's last event, [num_sequences]."""
        return self.offsets[1:] - 1

    def newest(self, max_length: int) -> "Batch":
        """The last `max_length` events of each sequence, for a model with shorter windows; for reading, not training:
        targets are left out."""
        lengths = self.offsets.diff().clamp(max=max_length)
        if int(lengths.sum()) == self.num_tokens:
            return self
        ends = lengths.cumsum(0)
        firsts = self.offsets[1:] - lengths
        places = torch.arange(int(ends[-1]), device=self.offsets.device)
        kept = places + torch.repeat_interleave(firsts - (ends - lengths), lengths)
        return Batch(
            items=self.items[kept],
            times=self.times[kept],
            actions=self.actions[kept],
            targets=torch.full_like(kept, -1),
            target_times=self.target_times[kept],
            offsets=torch.cat([ends.new_zeros(1), ends]),
            users=self.users,
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ON_CPU}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


_ON_CPU = ("users", "starts", "negatives")
"""Fields that no device reads."""


def batch_from_arrays(
    items: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.integer],
    *,
    times: npt.NDArray[np.integer] | None = None,
    target_times: npt.NDArray[np.integer] | None = None,
    actions: npt.NDArray[np.integer] | None = None,
    targets: npt.NDArray[np.integer] | None = None,
) -> Batch:
    """A batch from numpy arrays; what is not given is 0 (times, actions), `times` (target_times) or -1 (targets)."""
    num_tokens = len(items)

    def tensor(values: npt.NDArray[np.integer] | None, fill: int) -> Tensor:
        if values is None:
            return torch.full((num_tokens,), fill, dtype=torch.int64)
        return torch.from_numpy(np.array(values, dtype=np.int64))

    return Batch(
        items=tensor(items, 0),
        times=tensor(times, 0),
        actions=tensor(actions, 0),
        targets=tensor(targets, -1),
        target_times=tensor(target_times if target_times is not None else times, 0),
        offsets=torch.from_numpy(np.array(offsets, dtype=np.int64)),
    )
