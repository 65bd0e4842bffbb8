"""Beam search over code tuples that can only end at items: the trie says which codes may follow, for all beams at once.

A beam is a node of the trie with the sum of the log-probabilities on the way to it. At each level the children of a
user's beams compete, and the `width` best stay. Of two items with the same sum the one with the smaller index stands
first. With at least as many beams as the widest depth of the trie has nodes the result is what scoring every item
would give. With fewer, which of two beams with the very same sum is the last to stay is `torch.topk`'s choice, the same
every time on one device; deciding it by codes would double the time of a search.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from genrec.data.batch import Batch
from genrec.errors import ConfigError
from genrec.semantic.beam_filters import closed_nodes
from genrec.semantic.diversity import best_with_cap
from genrec.semantic.order import NOTHING, is_something, numbers_of, order_keys, scores_of
from genrec.semantic.trie import CodeTrie


class CodeScorer(Protocol):
    """Scores the next code of partial tuples; keeps its own key-value cache."""

    sizes: tuple[int, ...]
    """Codes of each level."""

    def start(self, batch: Batch) -> Any:
        """State after reading the histories; one row a user."""
        ...

    def step(self, state: Any, level: int, codes: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Any]:
        """Log-probabilities [num_users, width, sizes[level]] of the next code, and the new state.

        At level 0 `codes` and `parents` are None and width is 1. Later `codes` [num_users, width] are the codes just
        chosen and `parents` [num_users, width] the beam of the step before that each continues. Beams of a user
        that has fewer are filled up with code 0 of beam 0, and what is said of them is not read.
        """
        ...


def beam_search(
    scorer: CodeScorer,
    batch: Batch,
    trie: CodeTrie,
    width: int,
    k: int,
    *,
    exclude: tuple[Tensor, Tensor] | None = None,
    max_per_prefix: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items [num_users, k] int64 of each user and their log-probabilities float32, best first.

    0 and -inf where fewer are left. An item comes once, is in `trie`, and is none of `exclude`: (row of a user, item
    index) of pairs that must not come back. `max_per_prefix` bounds how many beams, and so how many items, of a user
    share their first code, at every level. A code whose log-probability is -inf is never chosen; a user for whom one is
    NaN gets no items and scores of NaN, because the model is broken.
    Raises ConfigError when k exceeds the width or the bound is below 1, or when scorer and trie have other levels.
    """
    check_search(width, k, max_per_prefix)
    if scorer.sizes != trie.sizes:
        raise ConfigError(
            f"The model writes codes of sizes {list(scorer.sizes)} and the catalogue has {list(trie.sizes)}; use the "
            "map that the model was trained with."
        )
    num_users, device = batch.num_sequences, trie.items.device
    closed = None if exclude is None else closed_nodes(trie, exclude)
    state = scorer.start(batch)
    nodes = torch.zeros(num_users, 1, dtype=torch.int64, device=device)  # -1 where there is no beam
    sums = torch.zeros(num_users, 1, device=device)
    is_broken = torch.zeros(num_users, dtype=torch.bool, device=device)
    first_codes: Tensor | None = None
    codes: Tensor | None = None
    parents: Tensor | None = None
    for number, level in enumerate(trie.levels):
        scores, state = scorer.step(state, number, codes, parents)
        asked = nodes.clamp(min=0)
        totals = level.child_scores(scores.float(), asked)  # [num_users, width, num_columns]
        totals += sums.unsqueeze(2)
        if closed is not None:
            closed[number].close(totals, nodes)
        if number == len(trie.levels) - 1:
            is_broken |= totals.isnan().flatten(1).any(dim=1)
            totals.nan_to_num_(-float("inf"), float("inf"), -float("inf"))
            keys = order_keys(totals, trie.items[level.children(asked)])
            keys, _ = _best(keys, k, first_codes, max_per_prefix)
            break
        sums, places = _best(totals, width, first_codes, max_per_prefix)
        is_broken |= sums.isnan().any(dim=1)  # NaN counts as the largest, so it is chosen
        parents, columns = places // totals.shape[2], places % totals.shape[2]
        is_alive = sums > -float("inf")
        nodes = torch.where(is_alive, level.child(asked.gather(1, parents), columns), -1)
        codes = torch.where(is_alive, level.codes[nodes.clamp(min=0)].long(), 0)
        parents = torch.where(is_alive, parents, 0)
        first_codes = codes if first_codes is None else first_codes.gather(1, parents)
    items, found = _filled_up(keys, k)
    found.masked_fill_(is_broken.unsqueeze(1), float("nan"))
    return items.masked_fill_(is_broken.unsqueeze(1), 0), found


def check_search(width: int, k: int, max_per_prefix: int | None = None) -> None:
    """Raises ConfigError when a search with these settings could not return k items."""
    if k < 1 or width < k:
        raise ConfigError(
            f"A beam of width {width} finds at most {width} items, and k is {k}; widen it (evaluation.beam_width), or "
            "ask for fewer items."
        )
    if max_per_prefix is not None and max_per_prefix < 1:
        raise ConfigError(f"max_per_prefix ({max_per_prefix}) must be at least 1; leave it out for no bound.")


def _best(values: Tensor, count: int, first_codes: Tensor | None, cap: int | None) -> tuple[Tensor, Tensor]:
    """The largest of each user's `values` [num_users, width, num_columns], at most `count`, and their places."""
    if cap is not None and first_codes is not None:
        return best_with_cap(values, first_codes, count, cap)
    found = values.flatten(1).topk(min(count, values.shape[1] * values.shape[2]), dim=1)
    return found.values, found.indices


def _filled_up(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Items and log-probabilities [num_users, k] of the keys of items, [num_users, at most k]."""
    found = keys.new_full((keys.shape[0], k), NOTHING)
    found[:, : keys.shape[1]] = keys
    is_item = is_something(found)
    return torch.where(is_item, numbers_of(found), 0), torch.where(is_item, scores_of(found), -float("inf"))
