"""The catalogue as a trie of codes in flat tensors: which codes may follow a prefix, for all beams at once.

The code tuples are sorted, so the prefixes of one length ("nodes" of a depth) can be numbered in that order: the
children of a node are then a run of numbers at the next depth, and a level of the trie is two arrays (compressed
sparse rows): where each node's run begins, and the code of each child. The idea of flattening the trie for a decoder
is STATIC's (arXiv 2602.22647). A level whose rows are mostly full is also kept as a table of children by code.

Depth 0 is the root alone. Level l leads from depth l to depth l + 1, and the nodes of the last depth are the items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.errors import ConfigError
from genrec.semantic.ids import SemanticIds

DENSE_ENTRIES = 2**20
"""Largest table of children by code: 4 MiB. With codes of 256 that is the first two levels."""


class Children(NamedTuple):
    """What may follow some nodes.

    nodes    int32 [num_users, width, num_columns]  the child in each column, or -1 or another's where it is `missing`
    missing  bool  [num_users, width, num_columns]  whether there is none
    codes    int64 [num_users, width, num_columns]  its code; None where column c is code c
    """

    nodes: Tensor
    missing: Tensor
    codes: Tensor | None


@dataclass(frozen=True, slots=True)
class TrieLevel:
    """One level: from the nodes of a depth to those of the next.

    starts        int32 [num_nodes + 1]   children of node i are starts[i] .. starts[i + 1] - 1 of the next depth
    codes         int32 [num_children]    code of every child, rising within a node
    size          codes that the level has
    max_children  children of the widest node
    table         int32 [num_nodes, size] the child by code, or -1; None where it would be large or thin
    """

    starts: Tensor
    codes: Tensor
    size: int
    max_children: int
    table: Tensor | None

    @classmethod
    def of(cls, starts: Tensor, codes: Tensor, size: int, dense_entries: int) -> "TrieLevel":
        """The level with these rows; it gets a table where rows are mostly full and the table is small."""
        num_nodes = starts.shape[0] - 1
        counts = starts.diff()
        max_children = int(counts.max())
        table = None
        # Padding rows to the widest one is as good as a table when that one is at most half full.
        if 2 * max_children > size and num_nodes * size <= dense_entries:
            table = torch.full((num_nodes, size), -1, dtype=torch.int32, device=starts.device)
            parents = torch.arange(num_nodes, device=starts.device).repeat_interleave(counts)
            table[parents, codes.long()] = torch.arange(codes.shape[0], dtype=torch.int32, device=starts.device)
        return cls(starts, codes, size, max_children, table)

    def children(self, nodes: Tensor) -> Children:
        """The children of `nodes` [num_users, width], in columns."""
        if self.table is not None:
            # A selection of rows copies them; indexing goes through them number by number.
            found = self.table.index_select(0, nodes.flatten()).view(*nodes.shape, self.size)
            return Children(found, found < 0, None)
        begin, end = self.starts[nodes].unsqueeze(2), self.starts[nodes + 1].unsqueeze(2)
        found = begin + torch.arange(self.max_children, dtype=torch.int32, device=nodes.device)
        missing = found >= end
        found.clamp_(max=self.codes.shape[0] - 1)
        codes = self.codes.index_select(0, found.flatten()).long().view(found.shape)
        return Children(found, missing, codes)

    def parents(self, nodes: Tensor) -> Tensor:
        """The parent of each of `nodes` [n] of the next depth."""
        return torch.searchsorted(self.starts, nodes.to(self.starts.dtype), right=True) - 1

    def columns(self, nodes: Tensor, parents: Tensor) -> Tensor:
        """Where `children` of `parents` [n] puts `nodes` [n] of the next depth."""
        return self.codes[nodes].long() if self.table is not None else nodes - self.starts[parents].long()


@dataclass(frozen=True, slots=True)
class CodeTrie:
    """The trie of a catalogue, or of the part of it that may be recommended.

    levels   one a code of the tuple
    items    int32 [num_leaves]     item index of each node of the last depth
    leaf_of  int32 [num_items + 1]  the node of each item; -1 for padding and for items that are not in this trie
    """

    levels: tuple[TrieLevel, ...]
    items: Tensor
    leaf_of: Tensor
    dense_entries: int = DENSE_ENTRIES

    @classmethod
    def from_ids(cls, ids: SemanticIds, *, dense_entries: int = DENSE_ENTRIES) -> "CodeTrie":
        """The trie of all items of a map, on the CPU.

        `dense_entries` bounds the table of a level (int32 entries); 0 leaves all levels in compressed rows.
        """
        order = _lexicographic_order(ids.codes[1:], ids.sizes)
        rows = ids.codes[1:][order]
        # Depth d + 1 begins a new node where one of the first d + 1 codes differs from the row before.
        new = np.zeros(len(rows), dtype=np.bool_)
        new[0] = True
        levels = []
        node_rows = np.zeros(1, dtype=np.int64)  # first row of every node of the depth above: the root's
        for level, size in enumerate(ids.sizes):
            new[1:] |= rows[1:, level] != rows[:-1, level]
            child_rows = np.flatnonzero(new)
            starts = np.append(np.searchsorted(child_rows, node_rows), len(child_rows)).astype(np.int32)
            codes = rows[child_rows, level].astype(np.int32)
            levels.append(TrieLevel.of(torch.from_numpy(starts), torch.from_numpy(codes), size, dense_entries))
            node_rows = child_rows
        items = torch.from_numpy((order + 1).astype(np.int32))
        return cls(tuple(levels), items, _leaf_of(items, ids.num_items), dense_entries)

    def restricted_to(self, allowed: Tensor) -> "CodeTrie":
        """The trie of the items that are `allowed` bool [num_items + 1], those of some types for one.

        A beam in it can only end at an allowed item, and costs less, the fewer they are. Building it takes a few passes
        over the arrays and no sort: keep it where the same filter is asked for again. Raises ConfigError when it
        would be empty.
        """
        alive = allowed.to(self.items.device)[self.items.long()]
        items = self.items[alive]
        if items.shape[0] == 0:
            raise ConfigError(
                f"None of the {self.num_leaves} items may be recommended under this filter; allow other item types."
            )
        levels: list[TrieLevel] = []
        for level in reversed(self.levels):
            kept_before = torch.cat([alive.new_zeros(1, dtype=torch.int64), alive.cumsum(0)])
            counts = kept_before[level.starts.long()].diff()  # of children that are left to each node
            codes = level.codes[alive]
            alive = counts > 0
            starts = torch.cat([counts.new_zeros(1), counts[alive].cumsum(0)]).to(torch.int32)
            levels.append(TrieLevel.of(starts, codes, level.size, self.dense_entries))
        return CodeTrie(tuple(reversed(levels)), items, _leaf_of(items, self.leaf_of.shape[0] - 1), self.dense_entries)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(level.size for level in self.levels)

    @property
    def num_leaves(self) -> int:
        """Items in this trie."""
        return self.items.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.items, self.leaf_of]
        arrays += [a for level in self.levels for a in (level.starts, level.codes, level.table) if a is not None]
        return sum(array.nbytes for array in arrays)

    def to(self, device: torch.device | str) -> "CodeTrie":
        """The trie on another device."""
        levels = tuple(
            TrieLevel(
                level.starts.to(device),
                level.codes.to(device),
                level.size,
                level.max_children,
                None if level.table is None else level.table.to(device),
            )
            for level in self.levels
        )
        return CodeTrie(levels, self.items.to(device), self.leaf_of.to(device), self.dense_entries)

    def find(self, codes: Tensor) -> Tensor:
        """Item index of each code tuple, [n] int64; 0 where no item of this trie has it.

        `codes` int64 [n, num_levels], with anything in it.
        """
        nodes = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
        found = torch.ones_like(nodes, dtype=torch.bool)
        for level, asked in zip(self.levels, codes.T, strict=True):
            children = level.children(nodes.unsqueeze(1))
            names = torch.arange(level.size, device=codes.device) if children.codes is None else children.codes[:, 0]
            matches = (names == asked.unsqueeze(1)) & ~children.missing[:, 0]
            column = matches.to(torch.uint8).argmax(dim=1, keepdim=True)
            found &= matches.any(dim=1)
            nodes = torch.where(found, children.nodes[:, 0].gather(1, column).squeeze(1), 0)
        return torch.where(found, self.items[nodes], 0).long()


def _leaf_of(items: Tensor, num_items: int) -> Tensor:
    leaf_of = torch.full((num_items + 1,), -1, dtype=torch.int32, device=items.device)
    leaf_of[items.long()] = torch.arange(items.shape[0], dtype=torch.int32, device=items.device)
    return leaf_of


def _lexicographic_order(codes: npt.NDArray[np.int32], sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rows of `codes` [num_items, num_levels] in rising order of their tuples.

    Where a tuple fits into 63 bits, one sort of whole numbers is five times as fast as `lexsort`.
    """
    if math.prod(sizes) >= 2**63:
        return np.lexsort(codes.T[::-1])
    keys = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(sizes):
        keys *= size
        keys += codes[:, level]
    return np.argsort(keys)
