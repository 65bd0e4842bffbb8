"""Jagged to padded and back: attention alone needs sequences side by side, everything else sees real tokens only.

The sequences of a batch are sorted by length and cut into a few groups of nearly equal length; padding exists inside a
group only. Both directions are row gathers, forward and backward, because each token has one slot and each slot one
token: no scatter, no atomic addition, the same bits on every run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrec.errors import DataError

# What one more group costs, in attention elements: about 60 small kernel calls against 15 ns an element (measured on
# a 2-core AVX2 machine, forward and backward of one layer).
GROUP_OVERHEAD_ELEMENTS = 16_384


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that share one padded block: slots `start .. start + num_sequences * length`, sequence-major."""

    start: int
    num_sequences: int
    length: int


@dataclass(frozen=True, slots=True)
class JaggedLayout:
    """Where each token of a jagged batch sits in the padded groups; made once a batch, shared by all layers.

    A slot row holds one head of one token, ordered (group, sequence, head, position), so that a group is a contiguous
    `[num_sequences * num_heads, length, width]` block.

    token_rows      [num_slots * num_heads]   row of the jagged `[num_tokens * num_heads, width]` view behind each slot
    slot_rows       [num_tokens * num_heads]  slot row behind each jagged row
    padding_rows    [num_padding * num_heads] slot rows without a token
    slot_tokens     [num_slots]               token behind each slot; padding repeats its sequence's last token
    positions       [num_tokens]              place of each token in its sequence, from 0
    """

    groups: tuple[Group, ...]
    num_heads: int
    token_rows: Tensor
    slot_rows: Tensor
    padding_rows: Tensor
    slot_tokens: Tensor
    positions: Tensor

    @property
    def max_length(self) -> int:
        """Events of the longest sequence."""
        return max((group.length for group in self.groups), default=0)

    def pad(self, rows: Tensor) -> Tensor:
        """`rows` [num_tokens, num_heads * width] as slots [num_slots * num_heads, width]; padding is 0."""
        jagged = rows.reshape(rows.shape[0] * self.num_heads, -1)
        padded: Tensor = _Regroup.apply(  # type: ignore[no-untyped-call]
            jagged, self.token_rows, self.slot_rows, self.padding_rows, True
        )
        return padded

    def unpad(self, slots: Tensor) -> Tensor:
        """`slots` [num_slots * num_heads, width] as rows [num_tokens, num_heads * width]; padding is dropped."""
        jagged: Tensor = _Regroup.apply(  # type: ignore[no-untyped-call]
            slots, self.token_rows, self.slot_rows, self.padding_rows, False
        )
        return jagged.reshape(self.positions.shape[0], -1)

    def block(self, slots: Tensor, group: Group) -> Tensor:
        """The group's part of `slots`, [num_sequences * num_heads, length, width]."""
        first = group.start * self.num_heads
        rows = group.num_sequences * group.length * self.num_heads
        return slots[first : first + rows].view(group.num_sequences * self.num_heads, group.length, -1)


class _Regroup(torch.autograd.Function):
    """Jagged -> padded (`pads`) or padded -> jagged; each is the other's transpose, and both are gathers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token_rows: Tensor, slot_rows: Tensor, padding: Tensor, pads: bool) -> Tensor:
        ctx.save_for_backward(token_rows, slot_rows, padding)
        ctx.pads = pads
        return _to_slots(rows, token_rows, padding) if pads else rows.index_select(0, slot_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        token_rows, slot_rows, padding = ctx.saved_tensors
        rows = grad.index_select(0, slot_rows) if ctx.pads else _to_slots(grad, token_rows, padding)
        return rows, None, None, None, None


def _to_slots(rows: Tensor, token_rows: Tensor, padding_rows: Tensor) -> Tensor:
    return rows.index_select(0, token_rows).index_fill_(0, padding_rows, 0)


def jagged_layout(offsets: Tensor, num_heads: int) -> JaggedLayout:
    """The layout of sequences with borders `offsets` [num_sequences + 1]; raises DataError when one is empty."""
    borders = offsets.cpu().numpy()
    lengths = np.diff(borders)
    if len(lengths) and lengths.min() < 1:
        raise DataError(
            f"sequence {int(lengths.argmin())} of the batch has no events, but each needs at least 1; "
            "drop the users without history"
        )
    order = np.argsort(lengths, kind="stable")
    num_tokens = int(borders[-1])
    positions = np.arange(num_tokens) - np.repeat(borders[:-1], lengths)

    groups, tokens, is_padding, rows = [], [], [], []
    start = 0
    for first, last in _cut_by_length(lengths[order]):
        members = order[first:last]
        group = Group(start, len(members), int(lengths[members[-1]]))
        groups.append(group)
        place = np.arange(group.length)
        group_tokens = borders[members][:, None] + np.minimum(place, lengths[members][:, None] - 1)  # [members, length]
        group_rows = group_tokens[:, None, :] * num_heads + np.arange(num_heads)[:, None]  # [members, heads, length]
        padding = np.broadcast_to((place >= lengths[members][:, None])[:, None, :], group_rows.shape)
        tokens.append(group_tokens.ravel())
        rows.append(group_rows.ravel())
        is_padding.append(padding.ravel().astype(np.int64))
        start += group.num_sequences * group.length
    token_rows = _concatenate(rows)
    padding_mask = _concatenate(is_padding) == 1
    slot_rows = np.empty(num_tokens * num_heads, dtype=np.int64)
    slot_rows[token_rows[~padding_mask]] = np.flatnonzero(~padding_mask)

    def tensor(values: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(offsets.device)

    return JaggedLayout(
        groups=tuple(groups),
        num_heads=num_heads,
        token_rows=tensor(token_rows),
        slot_rows=tensor(slot_rows),
        padding_rows=tensor(np.flatnonzero(padding_mask)),
        slot_tokens=tensor(_concatenate(tokens)),
        positions=tensor(positions),
    )


def _concatenate(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _cut_by_length(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of the rising `lengths` that cost least: padded attention elements plus an overhead a group.

    Dynamic programming over the distinct lengths: `best[j]` is the least cost of all sequences up to the j-th of them.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    best = np.zeros(len(distinct) + 1)
    cut_before = np.zeros(len(distinct) + 1, dtype=np.int64)
    for j in range(1, len(distinct) + 1):
        area = float(distinct[j - 1]) ** 2
        costs = best[:j] + (ends[j] - ends[:j]) * area + GROUP_OVERHEAD_ELEMENTS
        cut_before[j] = np.argmin(costs)
        best[j] = costs[cut_before[j]]
    ranges = []
    j = len(distinct)
    while j > 0:
        ranges.append((int(ends[cut_before[j]]), int(ends[j])))
        j = int(cut_before[j])
    return ranges[::-1]
