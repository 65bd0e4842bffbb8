"""Item vectors with clusters inside of clusters, and prepared sets that have them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import prepared_sets

from genrec.config import ExperimentConfig
from genrec.semantic.tokenizers_rows import Rows


def nested_vectors(num_rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """float32 [num_rows, dim]: 4 clusters far apart, 4 smaller ones in each, and a little noise."""
    rng = np.random.default_rng(seed)
    wide, narrow = rng.normal(size=(4, dim)) * 10, rng.normal(size=(4, dim)) * 2
    rows = rng.integers(16, size=num_rows)
    noise = rng.normal(size=(num_rows, dim)) * 0.05
    return (wide[rows // 4] + narrow[rows % 4] + noise).astype(np.float32)


def rows_of(vectors: np.ndarray, rank: int = 0, count: int = 1, all_reduce: Callable | None = None) -> Rows:
    """All rows, of one worker among `count`."""
    return Rows(vectors, np.arange(len(vectors)), rank, count, all_reduce)


def write_set(folder: Path, num_items: int, vectors: np.ndarray | None = None) -> Path:
    """A prepared set of `num_items` items (ids 10, 20, ...), each with an event, and their vectors [num_items, dim]."""
    prepared_sets.write_prepared(folder, [list(range(1, num_items + 1))] * 2, num_items=num_items)
    if vectors is not None:
        prepared_sets.give_vectors(folder, np.concatenate([np.zeros((1, vectors.shape[1])), vectors]))
    return folder


def map_config(prepared: Path, *overrides: str) -> ExperimentConfig:
    """A config whose map is made of the set's item vectors by residual k-means with 4 x 4 codes."""
    return prepared_sets.make_config(
        prepared,
        f"semantic_ids.path={prepared.parent / 'map'}",
        "semantic_ids.vectors.name=item-vectors",
        "semantic_ids.vectors.normalize=false",
        "semantic_ids.tokenizer.name=rkmeans",
        "semantic_ids.tokenizer.sizes=[4,4]",
        "semantic_ids.health.max_collision_rate=1",
        *overrides,
    )
