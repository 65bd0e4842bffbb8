"""The catalogue as a trie of codes in flat tensors: which codes may follow a prefix, for all beams at once.

The code tuples are sorted, so the prefixes of one length ("nodes" of a depth) can be numbered in that order: the
children of a node are then a run of numbers at the next depth, and a level of the trie is two arrays (compressed
sparse rows): where each node's run begins, and the code of each child. The idea of flattening the trie for a decoder
is STATIC's (arXiv 2602.22647). A level whose rows are mostly full is also kept as a table of children by code.

Depth 0 is the root alone. Level l leads from depth l to depth l + 1, and the nodes of the last depth are the items.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genrec.errors import ConfigError
from genrec.semantic.ids import SemanticIds, lexicographic_order

DENSE_ENTRIES = 2**20
"""Largest table of children by code: with its mask 8 MiB. With codes of 256 that is the first two levels."""


@dataclass(frozen=True, slots=True)
class TrieLevel:
    """One level: from the nodes of a depth to those of the next.

    A node's children stand in columns: by code where the level has tables, else one after another, filled up to as many
    as the widest node has.

    starts        int32 [num_nodes + 1]     children of node i are starts[i] .. starts[i + 1] - 1 of the next depth
    codes         int32 [num_children]      code of every child, rising within a node
    size          codes that the level has
    max_children  children of the widest node
    table         int32 [num_nodes, size]   the child by code, or -1; None where it would be large or thin
    mask          float32 [num_nodes, size] 0 where there is a child, else -inf; None likewise
    """

    starts: Tensor
    codes: Tensor
    size: int
    max_children: int
    table: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, starts: Tensor, codes: Tensor, size: int, dense_entries: int) -> "TrieLevel":
        """The level with these rows; it gets tables where rows are mostly full and the tables are small."""
        num_nodes, device = starts.shape[0] - 1, starts.device
        counts = starts.diff()
        max_children = int(counts.max())
        # Filling rows up to the widest one is cheaper than a table as long as that one is at most half full.
        if 2 * max_children <= size or num_nodes * size > dense_entries:
            return cls(starts, codes, size, max_children, None, None)
        table = torch.full((num_nodes, size), -1, dtype=torch.int32, device=device)
        parents = torch.arange(num_nodes, device=device).repeat_interleave(counts)
        table[parents, codes.long()] = torch.arange(codes.shape[0], dtype=torch.int32, device=device)
        mask = torch.zeros(table.shape, device=device).masked_fill_(table < 0, -float("inf"))
        return cls(starts, codes, size, max_children, table, mask)

    def child_scores(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """Of `scores` [num_users, width, size] those of the children of `nodes` [num_users, width], in columns.

        A new tensor [num_users, width, num_columns] of float32, with -inf where there is no child.
        """
        if self.mask is not None:
            # A selection of rows copies them; indexing goes through them number by number.
            found = self.mask.index_select(0, nodes.flatten()).view(scores.shape)
            found += scores
            return found
        children = self.children(nodes)
        codes = self.codes.index_select(0, children.flatten()).long().view(children.shape)
        columns = torch.arange(self.max_children, dtype=torch.int32, device=nodes.device)
        is_missing = columns >= (self.starts[nodes + 1] - self.starts[nodes]).unsqueeze(2)
        return scores.gather(2, codes).float().masked_fill_(is_missing, -float("inf"))

    def children(self, nodes: Tensor) -> Tensor:
        """The children of `nodes` [num_users, width] in columns, int32; any node where there is none."""
        if self.table is not None:
            return self.table.index_select(0, nodes.flatten()).clamp_(min=0).view(*nodes.shape, self.size)
        columns = torch.arange(self.max_children, dtype=torch.int32, device=nodes.device)
        return (self.starts[nodes].unsqueeze(2) + columns).clamp_(max=self.codes.shape[0] - 1)

    def child(self, nodes: Tensor, columns: Tensor) -> Tensor:
        """The child of each of `nodes` in the column of `columns`, int64 and of their shape."""
        found = self.starts[nodes] + columns if self.table is None else self.table[nodes, columns]
        return found.long()

    def parents(self, nodes: Tensor) -> Tensor:
        """The parent of each of `nodes` [n] of the next depth."""
        return torch.searchsorted(self.starts, nodes.to(self.starts.dtype), right=True) - 1

    def columns(self, nodes: Tensor, parents: Tensor) -> Tensor:
        """The columns in which `nodes` [n] of the next depth stand among the children of `parents` [n]."""
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
        order = lexicographic_order(ids.codes[1:], ids.sizes)
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
        arrays += [a for level in self.levels for a in (level.starts, level.codes)]
        arrays += [a for level in self.levels for a in (level.table, level.mask) if a is not None]
        return sum(array.nbytes for array in arrays)

    def to(self, device: torch.device | str) -> "CodeTrie":
        """The trie on another device."""
        levels = tuple(
            replace(
                level,
                starts=level.starts.to(device),
                codes=level.codes.to(device),
                table=None if level.table is None else level.table.to(device),
                mask=None if level.mask is None else level.mask.to(device),
            )
            for level in self.levels
        )
        return CodeTrie(levels, self.items.to(device), self.leaf_of.to(device), self.dense_entries)

    def find(self, codes: Tensor) -> Tensor:
        """Item index of each code tuple, [n] int64; 0 where no item of this trie has it.

        `codes` int64 [n, num_levels], with anything in it.
        """
        nodes = torch.zeros(codes.shape[0], 1, dtype=torch.int64, device=codes.device)
        is_found = torch.ones_like(nodes, dtype=torch.bool)
        for level, asked in zip(self.levels, codes.T, strict=True):
            is_asked = torch.arange(level.size, device=codes.device) == asked.unsqueeze(1)
            best = level.child_scores(torch.where(is_asked, 0.0, -float("inf")).unsqueeze(1), nodes).max(dim=2)
            is_found &= best.values == 0
            nodes = torch.where(is_found, level.child(nodes, best.indices), 0)
        return torch.where(is_found, self.items[nodes], 0).long().squeeze(1)


def _leaf_of(items: Tensor, num_items: int) -> Tensor:
    leaf_of = torch.full((num_items + 1,), -1, dtype=torch.int32, device=items.device)
    leaf_of[items.long()] = torch.arange(items.shape[0], dtype=torch.int32, device=items.device)
    return leaf_of
