"""The versioned map of a catalogue: which tuple of codes stands for which item.

A map is a folder. Training copies it into every export, so what a model learned can always be read back:

    codes.npy     int32 [num_items + 1, num_levels], row i is item index i; row 0, padding, is -1
    map.json      format, sizes of the levels, digest, digest of the item ids, and where the codes come from
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError

FORMAT_VERSION = 1
CODES_FILE = "codes.npy"
MAP_FILE = "map.json"


@dataclass(frozen=True)
class SemanticIds:
    """Code tuples of all items of a vocabulary; no two items have the same.

    `codes` int32 [num_items + 1, num_levels]: row i is item index i, level l holds 0 .. sizes[l] - 1, row 0 is -1.
    `items_digest` names the vocabulary that the rows belong to, `origin` says how the codes were made.
    Raises DataError when codes are outside of their level, or when two items share a tuple.
    """

    codes: npt.NDArray[np.int32]
    sizes: tuple[int, ...]
    items_digest: str
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.sizes) or len(self.codes) < 2:
            raise DataError(
                f"Semantic ids need one column of codes for each of the {len(self.sizes)} levels and at least one "
                f"item; these are {list(self.codes.shape)}."
            )
        items = self.codes[1:]
        outside = (items < 0) | (items >= np.array(self.sizes))
        if outside.any():
            row, level = np.argwhere(outside)[0]
            raise DataError(
                f"Item index {row + 1} has code {items[row, level]} on level {level}, which holds 0 to "
                f"{self.sizes[level] - 1}; make the map again with `genrec tokenize`."
            )
        order = lexicographic_order(items, self.sizes)
        is_same = (items[order[1:]] == items[order[:-1]]).all(axis=1)
        if is_same.any():
            sharing = order[np.append(False, is_same) | np.append(is_same, False)] + 1
            raise DataError(
                f"{len(sharing)} items share their codes with another, item index {sharing.min()} for one; "
                "resolve collisions with semantic_ids.collisions."
            )

    @property
    def num_items(self) -> int:
        """Items of the vocabulary."""
        return len(self.codes) - 1

    @property
    def num_levels(self) -> int:
        """Codes of an item."""
        return len(self.sizes)

    @property
    def digest(self) -> str:
        """SHA-256 of sizes, vocabulary and codes: two maps with the same digest mean the same."""
        told = json.dumps({"sizes": list(self.sizes), "items": self.items_digest}, sort_keys=True)
        digest = hashlib.sha256(told.encode())
        digest.update(np.ascontiguousarray(self.codes, dtype="<i4").tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the map; map.json comes last, so a folder without it is no map."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MAP_FILE).unlink(missing_ok=True)
        np.save(folder / CODES_FILE, self.codes.astype("<i4"))
        told = {
            "format": FORMAT_VERSION,
            "sizes": list(self.sizes),
            "digest": self.digest,
            "items_digest": self.items_digest,
            "origin": self.origin,
        }
        text = json.dumps(told, indent=2, sort_keys=True) + "\n"
        unfinished = folder / f"{MAP_FILE}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / MAP_FILE)


def load_semantic_ids(folder: str | Path) -> SemanticIds:
    """Reads a map back; raises DataError when it is not there, of another format, or not what was saved."""
    folder = Path(folder)
    try:
        told = json.loads((folder / MAP_FILE).read_text(encoding="utf-8"))
        codes = np.load(folder / CODES_FILE, allow_pickle=False)
        if told["format"] != FORMAT_VERSION:
            raise DataError(
                f"{folder} is a map of format {told['format']}, this genrec reads format {FORMAT_VERSION}; "
                "make it again with `genrec tokenize CONFIG --overwrite`."
            )
        ids = SemanticIds(codes, tuple(told["sizes"]), told["items_digest"], told["origin"])
        digest = told["digest"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # EOFError: codes.npy is empty
        raise DataError(
            f"{folder} holds no map of semantic ids that can be read ({error!r}); make one with "
            "`genrec tokenize CONFIG`, or again with --overwrite where a damaged one is."
        ) from error
    if ids.digest != digest:
        raise DataError(
            f"The codes in {folder} are not those that were saved there; copy the whole folder again, or make it again "
            "with `genrec tokenize CONFIG --overwrite`."
        )
    return ids


def lexicographic_order(codes: npt.NDArray[np.int32], sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rows of `codes` [num_items, num_levels] in rising order of their tuples.

    Where a tuple fits into 63 bits it is one sort of whole numbers, many times as fast as `lexsort`.
    """
    if math.prod(sizes) >= 2**63:
        return np.lexsort(codes.T[::-1])
    keys = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(sizes):
        keys *= size
        keys += codes[:, level]
    return np.argsort(keys)
