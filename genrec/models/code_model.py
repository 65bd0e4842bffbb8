"""What the models that write codes share: items as tokens, the loss over the levels, and scores of every item.

A model over codes reads the same packed batches of items as the others and looks its items' codes up in the map
(`SemanticIds`). Codes of all levels share one table of rows, level after level: the code c of level l is token
1 + sizes[0] + ... + sizes[l - 1] + c. Token 0 is padding, tokens behind the last level are the model's own.

Given the history, the codes of an item are written level by level, so

    log P(item | history) = sum over the levels l of log P(c_l | history, c_0 .. c_(l-1))

and the loss is the sum of the levels' cross entropies, with the target's own codes before each (teacher forcing).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.config import EvaluationConfig
from genrec.data.batch import Batch
from genrec.errors import ConfigError
from genrec.losses.full import FullSoftmax, at_least_fp32
from genrec.models.base import LossSum, SequenceModel
from genrec.models.item_table import ItemTable
from genrec.semantic.beam import beam_search, check_search
from genrec.semantic.ids import SemanticIds
from genrec.semantic.trie import CodeTrie

MAX_SCORED_BYTES = 256 * 2**20  # hidden vectors and log-probabilities of the users scored at a time


@dataclass(frozen=True, slots=True)
class CodeSetting:
    """The map that a model writes codes of, and how it looks for items (`evaluation.decoding`)."""

    ids: SemanticIds
    evaluation: EvaluationConfig


class CodeModel(SequenceModel):
    """A network from histories to code tuples; subclasses define `code_hidden`, `code_scores`, `start` and `step`."""

    generates = True
    semantic_ids: SemanticIds
    loss: FullSoftmax
    tokens_of_item: Tensor
    """int32 [num_items + 1, num_levels], row 0 is padding."""

    def __init__(self, setting: CodeSetting, item_table: ItemTable, loss: FullSoftmax) -> None:
        super().__init__(item_table, loss)
        ids = setting.ids
        self.semantic_ids = ids
        self.evaluation = setting.evaluation
        self.sizes = ids.sizes
        self.num_levels = ids.num_levels
        self.num_codes = sum(ids.sizes)
        self.first_tokens = [1 + sum(ids.sizes[:level]) for level in range(ids.num_levels)]
        tokens = torch.from_numpy(ids.codes + np.array(self.first_tokens, dtype=np.int32))
        tokens[0] = 0
        self.register_buffer("tokens_of_item", tokens, persistent=False)
        self._prefixes: Prefixes | None = None
        self._trie: CodeTrie | None = None
        self._part: tuple[Tensor, CodeTrie] | None = None  # the newest filter and its trie

    def tokens(self, items: Tensor) -> Tensor:
        """Tokens [num_rows, num_levels] of the codes of `items` [num_rows]."""
        return self.tokens_of_item.index_select(0, items).long()

    def code_hidden(self, batch: Batch, positions: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states [num_targets, num_levels, dim] that score the codes of the item after each position.

        `tokens` [num_targets, num_levels] are the codes of the items that come next: level l reads those before it.
        """
        raise NotImplementedError

    def code_loss(self, hidden: Tensor, tokens: Tensor, weights: Tensor | None) -> Tensor:
        """Summed loss of `hidden` [num_targets, num_levels, dim] against `tokens` [num_targets, num_levels]."""
        raise NotImplementedError

    def start(self, batch: Batch) -> Any:
        """The state after reading the histories, one row a user: see genrec/semantic/beam.py, `CodeScorer`."""
        raise NotImplementedError

    def step(self, state: Any, level: int, codes: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Any]:
        """Log-probabilities [num_users, width, sizes[level]] of the next code, and the new state.

        At level 0 `codes` and `parents` are None and width is 1. Later `codes` [num_users, width] are those just
        chosen, and `parents` [num_users, width] the beam of the step before that each continues.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> LossSum:
        """The summed loss over the batch's targets (targets of -1 do not count), in nats an item.

        A target is the next item of its window, as the data plane makes them.
        """
        positions = (batch.targets >= 0).nonzero().squeeze(1)
        num_targets = positions.shape[0]
        weights = None if batch.target_weights is None else batch.target_weights.index_select(0, positions)
        if num_targets == 0:  # one that weighs nothing keeps every weight in the graph
            positions = batch.targets.new_zeros(1)
            weights = torch.zeros(1, device=positions.device)
        tokens = self.tokens(batch.targets.index_select(0, positions).clamp(min=1))
        hidden = self.code_hidden(batch, positions, tokens)
        return LossSum(self.code_loss(hidden, tokens, weights), num_targets)

    def log_probabilities(self, hidden: Tensor, table: ItemTable) -> Tensor:
        """Log-probabilities [num_rows, num_items] of the rows 1 .. of a table of codes, as the loss sees them."""
        with torch.autocast(hidden.device.type, enabled=False):
            rows = self.loss.temperature(at_least_fp32(hidden))
            scores: Tensor = table(lambda weight: rows @ at_least_fp32(table.known(weight)[1:]).T)
        return scores.log_softmax(dim=1)

    @property
    def prefixes(self) -> "Prefixes":
        """Every beginning of the items' tuples, made when it is first asked for."""
        if self._prefixes is None:
            self._prefixes = Prefixes.of(self.semantic_ids)
        return self._prefixes

    def scores_of_all(self, batch: Batch) -> Tensor:
        """log P of every item, [num_sequences, num_items + 1] in fp32; column 0, padding, is -inf.

        The exact reference of decoding: every beginning that the catalogue has is a beam. Some users at a time.
        """
        scores = [self._scores_of_some(part) for _, part in self._parts(batch, self.prefixes.widest)]
        return torch.cat(scores)[: batch.num_sequences]

    def trie(self, allowed: Tensor | None = None) -> CodeTrie:
        """The trie of the items that are `allowed` bool [num_items + 1], or of all, where the model is.

        It is made when it is first asked for; of the filters the newest is kept.
        """
        device = self.tokens_of_item.device
        if self._trie is None or self._trie.items.device != device:
            self._trie, self._part = CodeTrie.from_ids(self.semantic_ids).to(device), None
        if allowed is None:
            return self._trie
        if self._part is None or self._part[0] is not allowed:
            self._part = (allowed, self._trie.restricted_to(allowed))
        return self._part[1]

    def _parts(self, batch: Batch, width: int) -> Iterator[tuple[int, Batch]]:
        """As many users at a time as may have `width` prefixes each; the first one's place comes with them.

        ZeRO-3 gathers weights from all workers for every pass, so all must make the same number of passes, however
        many users each has: there, parts of one user that has been answered already fill up what is missing.
        """
        widest = width * (max(self.sizes) + 32 * self.item_table.dim) * 4
        num_users = max(1, MAX_SCORED_BYTES // widest)
        for first in range(0, batch.num_sequences, num_users):
            yield first, sequences_of(batch, first, min(first + num_users, batch.num_sequences))
        if any(hasattr(weight, "ds_id") for weight in self.parameters()):
            done = -(-batch.num_sequences // num_users)
            for _ in range(done, -(-self.evaluation.users_per_batch // num_users)):
                yield batch.num_sequences, sequences_of(batch, 0, 1)

    def _scores_of_some(self, batch: Batch) -> Tensor:
        num_users, device = batch.num_sequences, batch.items.device
        prefixes = self.prefixes
        state = self.start(batch)
        scores = torch.zeros(num_users, 1, device=device)
        codes: Tensor | None = None
        before: Tensor | None = None
        for level, (parents, last_codes) in enumerate(prefixes.levels):
            found, state = self.step(state, level, codes, before)
            parents, last_codes = parents.to(device), last_codes.to(device)
            scores = scores[:, parents] + found[:, parents, last_codes].float()  # [num_users, num_prefixes]
            codes, before = last_codes.expand(num_users, -1), parents.expand(num_users, -1)
        everyone = scores.new_full((num_users, self.item_table.num_items + 1), -float("inf"))
        everyone[:, prefixes.items.to(device)] = scores
        return everyone

    def recommend(
        self,
        batch: Batch,
        k: int,
        exclude: tuple[Tensor, Tensor] | None = None,
        *,
        allowed: Tensor | None = None,
        max_per_prefix: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `SequenceModel`; the scores are log-probabilities. Fewer are left where items are 0 and scores -inf."""
        self.check_k(k)
        if self.evaluation.decoding == "exhaustive":
            self.check_max_per_prefix(max_per_prefix)
            return self._best_of_all(batch, k, exclude, allowed)
        trie, width = self.trie(allowed), max(self.evaluation.beam_width, k)
        found = []
        for first, part in self._parts(batch, width):
            pairs = None if exclude is None else _of_rows(exclude, first, first + part.num_sequences)
            found.append(beam_search(self, part, trie, width, k, exclude=pairs, max_per_prefix=max_per_prefix))
        items, scores = zip(*found, strict=True)
        return torch.cat(items)[: batch.num_sequences], torch.cat(scores)[: batch.num_sequences]

    def check_max_per_prefix(self, max_per_prefix: int | None) -> None:
        """Raises ConfigError when a list cannot be bound so: None is no bound."""
        if max_per_prefix is None:
            return
        check_search(1, 1, max_per_prefix)
        if self.evaluation.decoding == "exhaustive":
            raise ConfigError("max_per_prefix bounds beams; set evaluation.decoding to beam, or leave it out.")

    def _best_of_all(
        self, batch: Batch, k: int, exclude: tuple[Tensor, Tensor] | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = self.scores_of_all(batch)
        if exclude is not None:
            scores[exclude] = -float("inf")
        if allowed is not None:
            scores.masked_fill_(~allowed, -float("inf"))
        best = scores.topk(k, dim=1)
        return torch.where(best.values > -float("inf"), best.indices, 0), best.values


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The distinct beginnings of a catalogue's code tuples, level by level, each level in lexicographic order.

    levels   for each level the place of a prefix's parent in the level before and its last code, int64 [num_prefixes]
    items    int64 [num_items], the item of each whole tuple
    """

    levels: tuple[tuple[Tensor, Tensor], ...]
    items: Tensor

    @classmethod
    def of(cls, ids: SemanticIds) -> "Prefixes":
        """Those of a map."""
        codes = ids.codes[1:]
        order = np.lexsort(codes.T[::-1])
        codes = codes[order]
        parent_of_row = np.zeros(len(codes), dtype=np.int64)
        levels = []
        for level in range(ids.num_levels):
            begins = np.ones(len(codes), dtype=np.bool_)
            same_parent = parent_of_row[1:] == parent_of_row[:-1]
            begins[1:] = ~(same_parent & (codes[1:, level] == codes[:-1, level]))
            last_codes = codes[begins, level].astype(np.int64)
            levels.append((torch.from_numpy(parent_of_row[begins]), torch.from_numpy(last_codes)))
            parent_of_row = np.cumsum(begins) - 1
        return cls(tuple(levels), torch.from_numpy(order.astype(np.int64) + 1))

    @property
    def widest(self) -> int:
        """Prefixes that are continued at a time, at most."""
        return max((len(codes) for _, codes in self.levels[:-1]), default=1)


def _of_rows(pairs: tuple[Tensor, Tensor], first: int, last: int) -> tuple[Tensor, Tensor]:
    """The pairs (row, item) of the rows `first` .. `last - 1`, counted from `first`."""
    rows, items = pairs
    is_there = (rows >= first) & (rows < last)
    return rows[is_there] - first, items[is_there]


def sequences_of(batch: Batch, first: int, last: int) -> Batch:
    """The sequences `first` .. `last - 1` of a batch, as far as a model reads them."""
    begin, end = int(batch.offsets[first]), int(batch.offsets[last])
    per_token = ("items", "times", "actions", "targets", "target_times")
    return replace(
        batch,
        **{name: getattr(batch, name)[begin:end] for name in per_token},
        offsets=batch.offsets[first : last + 1] - begin,
        users=None if batch.users is None else batch.users[first:last],
        starts=None,
        target_weights=None,
        next_items=None,
        next_actions=None,
        next_values=None,
    )
