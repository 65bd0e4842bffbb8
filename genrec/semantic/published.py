"""Codes that somebody has published: a JSON file, id: [code, ...]; a code is a number or a word with one in it."""

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from genrec.config import PublishedTokenizer
from genrec.data.log_files import find_files
from genrec.errors import ConfigError, DataError
from genrec.semantic.vectors_texts import read_json_object

_NUMBER = re.compile(r"\d+")


def read_published(config: PublishedTokenizer, ids: pa.Array) -> tuple[npt.NDArray[np.int32], tuple[int, ...]]:
    """The codes of the items `ids` (as text), int32 [num_items, num_levels], and the sizes of the levels.

    A level has as many codes as its largest in the whole file says. Raises DataError when an item has none, or the
    file is not what it should be.
    """
    (file,) = find_files(config.path, ())[:1]
    values = {key: _codes(key, value, file.path) for key, value in read_json_object(file).items()}
    lengths = {len(codes) for codes in values.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{file.path} has tuples of {sorted(lengths)} codes; all must have the same number of them.")
    levels = lengths.pop() if config.levels is None else config.levels
    table = np.array(list(values.values()), dtype=np.int64)
    if levels > table.shape[1]:
        raise ConfigError(
            f"semantic_ids.tokenizer.levels is {levels} and {file.path} has {table.shape[1]} codes an item; lower it."
        )
    places = {key: place for place, key in enumerate(values)}
    keys = [_key(item, config.key_offset) for item in ids.to_pylist()]
    missing = [item for item, key in zip(ids.to_pylist(), keys, strict=True) if key not in places]
    if missing:
        raise DataError(
            f"{file.path} has no codes for {len(missing):,} of {len(ids):,} items, {missing[0]!r} for one; set "
            "semantic_ids.tokenizer.key_offset if its keys are other numbers than the ids."
        )
    table = table[:, :levels]
    codes = table[[places[key] for key in keys]].astype(np.int32)
    return codes, tuple(int(size) for size in table.max(axis=0) + 1)


def _codes(key: str, value: object, path: str) -> list[int]:
    numbers = []
    for code in value if isinstance(value, list) else [None]:
        found = _NUMBER.findall(str(code))
        if len(found) != 1:
            raise DataError(f"{path} must have a list of codes for each item, with one number in each, not {value!r}.")
        numbers.append(int(found[0]))
    return numbers


def _key(item: str, offset: int) -> str:
    if not offset:
        return item
    try:
        return str(int(item) + offset)
    except ValueError as error:
        raise ConfigError(
            f"semantic_ids.tokenizer.key_offset needs item ids that are whole numbers, not {item!r}; set it to 0."
        ) from error
