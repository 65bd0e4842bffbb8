"""`genrec tokenize --extend`: codes for items that have joined the catalogue; all that are there stay as they are.

New items get vectors of the same space and codes of the stored tokenizer. One that collides goes to the nearest free
code, or gets the next number of its bucket, and where its bucket is full, of the nearest one that is not. So the level
of numbers does not grow, and a trained model can write them. It does for published codes, which have no near ones.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.config import ExperimentConfig, PublishedTokenizer, SemanticIdsConfig
from genrec.errors import ConfigError, DataError
from genrec.semantic.collisions import Resolved
from genrec.semantic.ids import CODES_FILE, MAP_FILE, SemanticIds, load_semantic_ids
from genrec.semantic.map_folder import check_files, load_space, publish, work_folder
from genrec.semantic.published import read_published
from genrec.semantic.tokenize import (
    VECTORS_FILE,
    encode,
    relative_error,
    resolve,
    resolve_published,
    semantic_section,
    with_padding,
)
from genrec.semantic.tokenizers import load_tokenizer
from genrec.semantic.tokenizers_rows import Progress, quiet
from genrec.semantic.vectors import open_vectors, write_vectors
from genrec.semantic.vocabulary import check_catalogue, extends, item_ids, items_digest

DRIFT = 1.5  # new items whose codes are that much worse than the others' are told of


@dataclass(frozen=True, slots=True)
class Extended:
    """What an extension did: `num_moved` new items got another code than their first, for others had it.

    `grown` tells a level that grew, and its size before and after. `error_before` and `error_new` are the squared
    errors of old and new items' codes over the mean squared length of their vectors: new items that the tokenizer fits
    far worse are a reason to make a new map. None for published codes.
    """

    ids: SemanticIds
    num_new: int
    num_moved: int
    grown: tuple[int, int, int] | None
    error_before: float | None
    error_new: float | None

    def sentences(self) -> list[str]:
        """What a person should know about it."""
        if not self.num_new:
            return ["The map has codes for every item already; nothing was changed."]
        told = [f"{self.num_new:,} new items have codes, {self.num_moved:,} of them another than their first choice."]
        if self.grown is None:
            told.append("`genrec recommend RUN --map MAP` lets a model that was trained before write them.")
        else:
            level, before, after = self.grown
            told.append(
                f"Level {level} grew from {before} to {after} codes: a model trained before has no output for the new "
                "ones; train it again."
            )
        if self.error_before is not None and self.error_new is not None:
            drift = self.error_new > DRIFT * self.error_before + 1e-6
            told.append(
                f"Error of the new items' codes {self.error_new:.4g}, of the others {self.error_before:.4g}"
                + ("; the tokenizer knows little of such items: a new map would serve them better." if drift else ".")
            )
        return told


def extend(config: ExperimentConfig, progress: Progress = quiet) -> Extended:
    """Gives the items of the prepared set that the map at `semantic_ids.path` does not know codes.

    Raises DataError when there is no map or a file of it is damaged, when the prepared set is not the map's with items
    added behind, and when new items' vectors would be of another space; ConfigError when the config asks for another
    tokenizer than the map's.
    """
    section = semantic_section(config)
    target = Path(section.path).absolute()
    with work_folder(target) as work:
        old = load_semantic_ids(target)
        _check_same(section, old)
        check_files(target, old.origin.get("files", {}))
        items = item_ids(config.data.prepared)
        if not extends(old, items):
            check_catalogue(old, items, f"The map {section.path}", config.data.prepared)
            return Extended(old, 0, 0, None, None, None)
        if isinstance(section.tokenizer, PublishedTokenizer):
            resolved, error = _published(section, section.tokenizer, old, items), None
        else:
            resolved, error = _tokenized(config, section, old, target, work, progress)
        sizes = tuple(map(max, old.sizes, resolved.sizes))
        changes = zip(range(len(sizes)), old.sizes, sizes, strict=True)
        grown = next((change for change in changes if change[1] < change[2]), None)
        extension = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_digest": old.digest,
            "first_index": old.num_items + 1,
            "num_new": len(resolved.codes),
        }
        origin = old.origin | {"extensions": [*old.origin.get("extensions", []), extension]}
        codes = np.concatenate([old.codes, with_padding(resolved.codes)[1:]])
        ids = SemanticIds(codes, sizes, items_digest(items), origin)
        finished = work / "map"
        shutil.copytree(target, finished, ignore=shutil.ignore_patterns(MAP_FILE, CODES_FILE))
        ids.save(finished)
        publish(finished, target)
    return Extended(ids, len(resolved.codes), resolved.num_moved, grown, old.origin.get("error"), error)


def _check_same(section: SemanticIdsConfig, old: SemanticIds) -> None:
    """Raises ConfigError when the config would make codes in another way than the map's were made."""
    wanted = {
        "tokenizer": section.tokenizer.model_dump(mode="json"),
        "vectors": section.vectors.model_dump(mode="json"),
        "collisions": section.collisions,
    }
    other = [name for name, value in wanted.items() if _what_counts(old.origin.get(name)) != _what_counts(value)]
    if other:
        raise ConfigError(
            f"The map {section.path} was made with other settings of semantic_ids.{' and semantic_ids.'.join(other)}; "
            "give them back to extend it, or make it again with `genrec tokenize CONFIG --overwrite`."
        )


def _what_counts(values: object) -> object:
    """Settings without those that change no vector: where files lie, and how fast they are read; and without those that
    are null, which a map of an older version may not have."""
    if not isinstance(values, dict):
        return values
    free = {"path", "ids", "encoder", "workers", "texts_per_batch", "texts_per_shard", "rows_per_batch"}
    return {name: value for name, value in values.items() if name not in free and value is not None}


def _published(
    section: SemanticIdsConfig, tokenizer: PublishedTokenizer, old: SemanticIds, items: pa.Array
) -> Resolved:
    codes, sizes = read_published(tokenizer, items)
    held = old.codes[1:]
    if not np.array_equal(codes[: old.num_items], held[:, : codes.shape[1]]):
        raise DataError(
            f"{tokenizer.path} has other codes than the map for items that the map knows; give the file that the map "
            "was made of, with new items added, or make the map again with `genrec tokenize CONFIG --overwrite`."
        )
    return resolve_published(section, codes[old.num_items :], sizes, held)


def _tokenized(
    config: ExperimentConfig,
    section: SemanticIdsConfig,
    old: SemanticIds,
    target: Path,
    work: Path,
    progress: Progress,
) -> tuple[Resolved, float]:
    tokenizer = load_tokenizer(target)
    source = open_vectors(config, section, load_space(target), progress)
    items = item_ids(config.data.prepared)
    found = write_vectors(source, work / VECTORS_FILE, old.num_items, items, section.vectors.normalize)
    missing = 1 - float(found.has_vector.mean())
    if missing > section.health.max_without_vector:
        raise DataError(
            f"{missing:.1%} of the {len(found.vectors):,} new items have no vector, at most "
            f"{section.health.max_without_vector:.1%} by semantic_ids.health.max_without_vector; add them to what "
            "semantic_ids.vectors reads, or move the threshold."
        )
    codes = encode(tokenizer, found, progress)
    resolved = resolve(section, codes, found, tokenizer, old.codes[1:])
    return resolved, relative_error(tokenizer, found, codes)
