"""Items that a user must not get, as nodes of the trie that lead nowhere else.

A node is closed to a user once all items below it are. Items are leaves, so the closed nodes of a depth follow from
those of the next one: the nodes whose children are all closed. These lists are never longer than the list of excluded
pairs, and no count over the catalogue is kept. Filters that are the same for all users, such as item types, are a
trie of their own (`CodeTrie.restricted_to`), and closed nodes are counted in that one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.semantic.trie import CodeTrie


@dataclass(frozen=True, slots=True)
class ClosedNodes:
    """Nodes of one depth that are closed to a user, and whose parent is not; one entry a pair of user and node.

    rows     int64 [num_closed]  the user
    parents  int64 [num_closed]  the node's parent
    columns  int64 [num_closed]  its column among the parent's children
    """

    rows: Tensor
    parents: Tensor
    columns: Tensor

    def close(self, scores: Tensor, nodes: Tensor) -> None:
        """Sets `scores` [num_users, width, num_columns] of the closed children of `nodes` [num_users, width] to -inf.

        A row of `nodes` holds a node once at most; what holds none is -1.
        """
        entry, beam = (nodes[self.rows] == self.parents.unsqueeze(1)).nonzero(as_tuple=True)
        scores[self.rows[entry], beam, self.columns[entry]] = -float("inf")


def closed_nodes(trie: CodeTrie, exclude: tuple[Tensor, Tensor]) -> list[ClosedNodes]:
    """For every level of the trie, what `exclude` closes among the nodes that the level leads to.

    `exclude` is (row of a user, item index) of the pairs that must not come back; a pair may be there more than once.
    """
    device = trie.items.device
    rows, leaves = exclude[0].to(device), trie.leaf_of[exclude[1].to(device)].long()
    known = leaves >= 0
    keys = torch.unique(rows[known] * trie.num_leaves + leaves[known])  # sorted
    rows, nodes = keys // trie.num_leaves, keys % trie.num_leaves
    found: list[ClosedNodes] = []
    for level in reversed(trie.levels):
        parents = level.parents(nodes)
        found.append(ClosedNodes(rows, parents, level.columns(nodes, parents)))
        # Children of one parent follow each other, so equal pairs of user and parent do.
        num_parents = level.starts.shape[0] - 1
        keys, counts = torch.unique_consecutive(rows * num_parents + parents, return_counts=True)
        rows, nodes = keys // num_parents, keys % num_parents
        closed = counts == level.starts[nodes + 1] - level.starts[nodes]
        rows, nodes = rows[closed], nodes[closed]
    return found[::-1]
