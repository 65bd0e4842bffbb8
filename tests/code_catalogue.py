"""Scorers and catalogues for tests of decoding, and what scoring every item by itself gives."""

import numpy as np
import torch
from torch import Tensor

from genrec.data.batch import Batch, batch_from_arrays
from genrec.semantic.ids import SemanticIds


def random_ids(num_items: int, sizes: tuple[int, ...], seed: int) -> SemanticIds:
    """A catalogue of different random tuples."""
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(int(np.prod(sizes)))[:num_items]
    codes = np.stack(np.unravel_index(numbers, sizes), axis=1)
    return SemanticIds(np.concatenate([np.full((1, len(sizes)), -1), codes]).astype(np.int32), sizes, "the items")


def batch_of(num_users: int) -> Batch:
    """Users with one event each; user i has seen item i + 1 last."""
    return batch_from_arrays(np.arange(1, num_users + 1), np.arange(num_users + 1))


class TableScorer:
    """Log-probabilities that depend on the user and the whole prefix, looked up by the prefix's number.

    Its state is the number of each beam's prefix, so it also says whether `parents` and `codes` are passed on right.
    `num_values` makes ties: that many different scores exist.
    """

    def __init__(self, sizes: tuple[int, ...], num_users: int, seed: int, num_values: int = 0) -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(seed)
        self.tables: list[Tensor] = []
        num_prefixes = 1
        for size in sizes:
            logits = torch.randn(num_users, num_prefixes, size, generator=generator)
            if num_values:
                logits = torch.randint(0, num_values, logits.shape, generator=generator).float()
            self.tables.append(logits if num_values else logits.log_softmax(2))
            num_prefixes *= size

    def start(self, batch: Batch) -> Tensor:
        return torch.zeros(batch.num_sequences, 1, dtype=torch.int64)

    def step(self, state: Tensor, level: int, codes: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        if codes is not None and parents is not None:
            state = state.gather(1, parents) * self.sizes[level - 1] + codes
        table = self.tables[level]
        return table.gather(1, state.unsqueeze(2).expand(-1, -1, table.shape[2])), state

    def score_items(self, ids: SemanticIds) -> Tensor:
        """Score of every item for every user, [num_users, num_items + 1]; -inf for padding."""
        scores = torch.zeros(self.tables[0].shape[0], ids.num_items)
        prefixes = torch.zeros(ids.num_items, dtype=torch.int64)
        for table, size, codes in zip(self.tables, self.sizes, torch.from_numpy(ids.codes[1:].T).long(), strict=True):
            scores = table[:, prefixes, codes] + scores
            prefixes = prefixes * size + codes
        return torch.cat([torch.full((scores.shape[0], 1), -float("inf")), scores], dim=1)


def best_of(scores: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The k best columns of each row and their scores, equal ones by column; 0 and -inf where fewer are above -inf."""
    items, values = [], []
    for row in scores.tolist():
        best = sorted((i for i, score in enumerate(row) if score > -float("inf")), key=lambda i: (-row[i], i))[:k]
        items.append(best + [0] * (k - len(best)))
        values.append([row[i] for i in best] + [-float("inf")] * (k - len(best)))
    return items, values
