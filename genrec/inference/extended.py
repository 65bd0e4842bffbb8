"""A trained model over codes with a map that has grown: it writes the new items too, and nothing is trained.

`genrec tokenize CONFIG --extend` changes no code that is there, so what the model has learned about codes stays true.
What new items need besides codes is few things: their ids, a place in the trie, and a vector of zeros where the model
also reads ids, for it has learned nothing about theirs.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from genrec.data.item_types import MAX_TYPES, type_names
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError
from genrec.inference.export import Export
from genrec.semantic.ids import SemanticIds, load_semantic_ids
from genrec.semantic.vocabulary import check_catalogue, item_ids, items_digest

ITEM_TABLE = "item_table.weight"
ITEM_TYPES = "features.item_types"


def extended(export: Export, folder: Path, path: str) -> Export:
    """The export of `path` with the map in `folder` and the item table of its prepared set, which has grown too.

    Raises ConfigError when the model writes no codes, or the map is not its own with items added; DataError when the
    map cannot be read or is not of exactly the items of the prepared set.
    """
    old, prepared = export.semantic_ids, export.config.data.prepared
    if old is None:
        raise ConfigError(
            f"{path} ({export.config.model.name}) writes no codes, so it has no map that could grow; leave --map out, "
            "or train it again to teach it new items."
        )
    new, ids = load_semantic_ids(folder), item_ids(prepared)
    check_catalogue(new, ids, f"The map {folder}", prepared)
    _check_grown(old, new, ids, str(folder), path)
    num_new = new.num_items - old.num_items
    items = _items(prepared)
    weights = _with_types(_with_new_rows(export.state_dict, num_new), export.items, items)
    return export._replace(items=items, semantic_ids=new, state_dict=weights)


def _check_grown(old: SemanticIds, new: SemanticIds, ids: pa.Array, folder: str, path: str) -> None:
    """Raises ConfigError unless `new` is `old` with items added behind; `ids` are the new one's items."""
    num_old = old.num_items
    if new.num_items < num_old or items_digest(ids.slice(0, num_old)) != old.items_digest:
        raise ConfigError(
            f"The first {num_old:,} items of the map {folder} are not those of {path}, so an index means another item "
            "there; name the map that it was trained with, extended by `genrec tokenize CONFIG --extend`."
        )
    if new.num_levels != old.num_levels or not np.array_equal(new.codes[: num_old + 1], old.codes):
        raise ConfigError(
            f"The map {folder} has other codes for items that {path} was trained on; name the map that it was trained "
            "with, extended by `genrec tokenize CONFIG --extend`, or train again on the new map."
        )
    if new.sizes != old.sizes:
        level = next(level for level, pair in enumerate(zip(new.sizes, old.sizes, strict=True)) if pair[0] != pair[1])
        raise ConfigError(
            f"Level {level} of the map {folder} has grown from {old.sizes[level]} to {new.sizes[level]} codes, and "
            f"{path} has no output for the new ones; train again on the new map (only "
            "maps of published codes, or whose every tuple is full, grow so)."
        )


def _items(prepared: str) -> pa.Table:
    path = at_hand(prepared) / ITEMS_FILE
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); run `genrec prepare CONFIG --overwrite`.") from error


def _with_types(state_dict: dict[str, Tensor], old: pa.Table, items: pa.Table) -> dict[str, Tensor]:
    """The weights with the types of new items too, where the model reads types: by the names that it knows them by."""
    code_of = {name: code for code, name in enumerate(type_names(old).to_pylist(), start=1)}
    types = items.sort_by("index")["type"].slice(old.num_rows).to_pylist()
    codes = [0 if name is None else code_of.setdefault(name, len(code_of) + 1) for name in types]
    if len(code_of) > MAX_TYPES:
        raise DataError(f"The items have {len(code_of)} types, at most {MAX_TYPES} are possible; use fewer kinds.")
    return state_dict | {
        name: torch.cat([weight, torch.tensor(codes, dtype=weight.dtype)])
        for name, weight in state_dict.items()
        if name.endswith(ITEM_TYPES)
    }


def _with_new_rows(state_dict: dict[str, Tensor], num_new: int) -> dict[str, Tensor]:
    """The weights with rows of zeros for new items, where the model has a vector of each item's id."""
    table = state_dict.get(ITEM_TABLE)
    if table is None:
        return state_dict
    return state_dict | {ITEM_TABLE: torch.cat([table, table.new_zeros(num_new, table.shape[1])])}
