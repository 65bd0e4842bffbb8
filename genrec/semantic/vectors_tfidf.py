"""TF-IDF of words, and its truncated singular value decomposition: item vectors from texts without any model.

Weights are (1 + ln count) * (1 + ln((1 + num_items) / (1 + items with the word))), each item's divided by their length.
The decomposition is randomised (Halko, Martinsson and Tropp, 2011): a few products with the sparse matrix.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from genrec.config import TfidfVectors
from genrec.errors import ConfigError

_BETWEEN_WORDS = r"[^\pL\pN]+"
_EXTRA_COLUMNS = 8
_POWER_ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class Tfidf:
    """What a new text needs to get a vector in the same space.

    `words` [num_words], `rarity` float32 [num_words], `axes` float32 [num_words, dim].
    """

    words: pa.Array
    rarity: Tensor
    axes: Tensor

    def vectors(self, texts: pa.Array) -> npt.NDArray[np.float32]:
        """Vectors [num_texts, dim]; zeros for a text without a known word."""
        matrix = _weighted(*_counts(texts, self.words), self.rarity, len(texts))
        found: npt.NDArray[np.float32] = (matrix @ self.axes).numpy()
        return found


def fit_tfidf(config: TfidfVectors, texts: pa.Array, seed: int) -> Tfidf:
    """The words that count, how rare they are, and the axes; raises ConfigError when there are too few words."""
    words = _words_of(texts)
    parents, flat = words
    pairs = pa.table({"text": parents, "word": flat}).group_by(["text", "word"]).aggregate([])
    counted = (
        pairs.group_by("word")
        .aggregate([("text", "count")])
        .sort_by([("text_count", "descending"), ("word", "ascending")])
    )
    counted = counted.filter(pc.greater_equal(counted["text_count"], config.min_items)).slice(0, config.max_words)
    if config.dim > min(len(counted), len(texts)):
        raise ConfigError(
            f"semantic_ids.vectors.dim ({config.dim}) must be at most the number of items ({len(texts):,}) and of "
            f"words that {config.min_items} items have ({len(counted):,}); lower it, or semantic_ids.vectors.min_items."
        )
    num_with = torch.from_numpy(counted["text_count"].to_numpy().astype(np.float32))
    rarity = 1 + torch.log((1 + len(texts)) / (1 + num_with))
    known = counted["word"].combine_chunks()
    matrix = _weighted(*_counts(texts, known), rarity, len(texts))
    rank = min(config.dim + _EXTRA_COLUMNS, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        axes = torch.svd_lowrank(matrix, q=rank, niter=_POWER_ITERATIONS)[2][:, : config.dim]
    # The sign of an axis is an accident of the library; the largest entry is made positive.
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return Tfidf(known, rarity, (axes * signs).contiguous())


def _words_of(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    lists = pc.split_pattern_regex(pc.utf8_lower(texts), _BETWEEN_WORDS)
    parents, flat = pc.list_parent_indices(lists), pc.list_flatten(lists)
    real = pc.not_equal(flat, "")
    return parents.filter(real), flat.filter(real)


def _counts(
    texts: pa.Array, known: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Text, word and count of each pair that occurs, by text and word."""
    parents, flat = _words_of(texts)
    places = pc.index_in(flat, value_set=known)
    kept = places.is_valid()
    rows = parents.filter(kept).to_numpy().astype(np.int64)
    columns = places.filter(kept).to_numpy().astype(np.int64)
    keys, counts = np.unique(rows * len(known) + columns, return_counts=True)
    return keys // len(known), keys % len(known), counts.astype(np.float32)


def _weighted(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float32],
    rarity: Tensor,
    num_rows: int,
) -> Tensor:
    """The sparse matrix of weights, [num_texts, num_words], rows of length 1."""
    places = torch.from_numpy(np.stack([rows, columns]))
    weights = (1 + torch.from_numpy(counts).log()) * rarity[places[1]]
    lengths = torch.zeros(num_rows).index_add_(0, places[0], weights.square()).sqrt()
    weights = weights / lengths[places[0]]
    return torch.sparse_coo_tensor(places, weights, (num_rows, len(rarity)), is_coalesced=True, check_invariants=False)
