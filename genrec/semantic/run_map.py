"""The map that a model writes codes of: the one that a config names, and a made-up one where only its sizes matter."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrec.config import ExperimentConfig, SemanticIdsConfig
from genrec.config_errors import explain_validation_error
from genrec.errors import DataError, RunError
from genrec.semantic.ids import MAP_FILE, SemanticIds, load_semantic_ids


def semantic_ids_for(config: ExperimentConfig, num_items: int) -> SemanticIds | None:
    """The map at `semantic_ids.path`; None when the config's model writes no codes.

    Raises DataError when it cannot be read, or is of another number of items than the prepared set's `num_items`.
    """
    if not config.writes_codes or config.semantic_ids is None:
        return None
    ids = load_semantic_ids(config.semantic_ids.path)
    if ids.num_items != num_items:
        raise DataError(
            f"{config.semantic_ids.path} has codes of {ids.num_items:,} items, and {config.data.prepared} has "
            f"{num_items:,}; name the map of this set in semantic_ids.path, or make one with `genrec tokenize`."
        )
    return ids


def as_made(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the vectors, tokenizer and collisions that the map at `semantic_ids.path` was made with.

    For a config that takes another map than its own: `genrec train` refuses a map of another tokenizer. Unchanged where
    no map can be read; raises ConfigError where its settings are not of this version.
    """
    if config.semantic_ids is None:
        return config
    file = Path(config.semantic_ids.path) / MAP_FILE
    try:
        origin = json.loads(file.read_text(encoding="utf-8"))["origin"]
        made = {name: origin[name] for name in ("vectors", "tokenizer", "collisions") if name in origin}
    except (OSError, ValueError, KeyError, TypeError):  # whoever reads the map tells what is wrong with it
        return config
    values = config.semantic_ids.model_dump(mode="json") | made
    section = explain_validation_error(SemanticIdsConfig, values, f"What {file} says of its making")
    return config.model_copy(update={"semantic_ids": section})


def check_map(trained: str | None, ids: SemanticIds | None, what: str) -> None:
    """Raises RunError unless `ids` is the map with the digest `trained`; both are None for a model without codes."""
    now = None if ids is None else ids.digest
    if trained != now:
        raise RunError(
            f"{what} was trained with the map {_shown(trained)}, and semantic_ids.path holds {_shown(now)}; name the "
            "map that it was trained with, or start over with --fresh."
        )


def _shown(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def made_up_ids(num_items: int, sizes: Sequence[int]) -> SemanticIds:
    """A map that means nothing: item i has the digits of i - 1, the last level counting fastest.

    For what depends on sizes alone: a plan, a count of weights. Where there are fewer tuples than items, the first
    level is made larger.
    """
    rest = np.arange(num_items, dtype=np.int64)
    levels = []
    for size in reversed(sizes[1:]):
        levels.append(rest % size)
        rest = rest // size
    levels.append(rest)
    codes = np.full((num_items + 1, len(sizes)), -1, dtype=np.int32)
    codes[1:] = np.stack(levels[::-1], axis=1)
    return SemanticIds(codes, (max(sizes[0], int(rest.max()) + 1), *sizes[1:]), "", {"kind": "made up"})
