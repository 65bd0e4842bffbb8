"""Types of items (track, episode, ...) as codes, by the order in which they first occur in the item table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError

MAX_TYPES = 255  # a type is one byte, and 0 means none


def read_item_types(prepared: str | Path) -> npt.NDArray[np.uint8]:
    """Type code of every item of a prepared set, [num_items + 1]; raises DataError when it cannot be read."""
    path = at_hand(prepared) / ITEMS_FILE
    try:
        return item_type_codes(pq.read_table(path, columns=["index", "type"]))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error


def type_names(items: pa.Table) -> pa.Array:
    """Names of the types 1, 2, ... of an item table, in the order in which its items first have them."""
    return items.sort_by("index")["type"].drop_null().unique()


def item_type_codes(items: pa.Table) -> npt.NDArray[np.uint8]:
    """Type code of every item, [num_items + 1]: 0 for padding and for items without a type, else 1, 2, ...

    New items come after the old ones, so an item table that has grown keeps the codes that it had.
    Raises DataError when there are more types than one byte can name.
    """
    encoded = items.sort_by("index")["type"].combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MAX_TYPES:
        raise DataError(
            f"The items have {len(encoded.dictionary)} types, at most {MAX_TYPES} are possible; use fewer kinds."
        )
    codes = np.zeros(len(items) + 1, dtype=np.uint8)
    codes[1:] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    return codes


def of_types(items: pa.Table, types: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which items have one of `types`, [num_items + 1], false for padding.

    Raises DataError when no item has a type, ConfigError on a type that none has.
    """
    column = items.sort_by("index")["type"].combine_chunks()
    known = sorted(column.unique().drop_null().to_pylist())
    if not known:
        raise DataError(
            "The items of this set have no types; name a table of them in data.source.items_path, and prepare it again."
        )
    strange = [name for name in types if name not in known]
    if strange:
        raise ConfigError(f"No item has the type {strange[0]!r}; the types are {', '.join(known)}.")
    is_of_types = np.zeros(len(items) + 1, dtype=np.bool_)
    is_of_types[1:] = pc.is_in(column, value_set=pa.array(types, pa.string())).to_numpy(zero_copy_only=False)
    return is_of_types
