"""Which catalogue a map belongs to: the ids of a prepared set's items in index order, and their digest."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError
from genrec.semantic.ids import SemanticIds, load_semantic_ids

_IDS_PER_UPDATE = 100_000


def read_items(folder: str | Path, columns: tuple[str, ...] = ("item",)) -> pa.Table:
    """Columns of the item table of a prepared set or an export, row i - 1 for item index i.

    Raises DataError when it cannot be read.
    """
    path = at_hand(folder) / ITEMS_FILE
    try:
        table = pq.read_table(path, columns=["index", *columns])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); run `genrec prepare CONFIG --overwrite`.") from error
    return table.sort_by("index").select(list(columns))


def item_ids(folder: str | Path) -> pa.Array:
    """The item ids of a prepared set as text, in index order, [num_items]."""
    return read_items(folder)["item"].cast(pa.string()).cast(pa.large_string()).combine_chunks()


def items_digest(ids: pa.Array) -> str:
    """SHA-256 of item ids in index order; the first rows of a set that has grown have the digest that they had."""
    digest = hashlib.sha256()
    for first in range(0, len(ids), _IDS_PER_UPDATE):
        for item in ids.slice(first, _IDS_PER_UPDATE).to_pylist():
            text = item.encode()
            digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def map_for(config: ExperimentConfig, folder: str | Path) -> SemanticIds:
    """The map at `semantic_ids.path`, of exactly the items of a prepared set (or an export) in `folder`.

    Raises ConfigError when the config names no map, and DataError when there is none or it is of other items.
    """
    if config.semantic_ids is None:
        raise ConfigError("This needs codes for items, and semantic_ids is null; give semantic_ids.path a folder.")
    ids = load_semantic_ids(config.semantic_ids.path)
    check_catalogue(ids, item_ids(folder), f"The map {config.semantic_ids.path}", str(folder))
    return ids


def check_catalogue(ids: SemanticIds, items: pa.Array, name: str, folder: str) -> None:
    """Raises DataError unless the map, called `name`, is of exactly these items, those of `folder`."""
    if ids.items_digest == items_digest(items):
        return
    if extends(ids, items):
        raise DataError(
            f"{name} has codes for {ids.num_items:,} items and {folder} has {len(items) - ids.num_items:,} more; run "
            "`genrec tokenize CONFIG --extend`, which changes no code that is there."
        )
    raise DataError(
        f"{name} is of another catalogue than {folder} ({ids.num_items:,} items, {len(items):,} there, or in another "
        "order); set semantic_ids.path to its own map, or make it again with `genrec tokenize CONFIG --overwrite`."
    )


def extends(ids: SemanticIds, items: pa.Array) -> bool:
    """Whether the items are those of the map, and others after them."""
    return len(items) > ids.num_items and items_digest(items.slice(0, ids.num_items)) == ids.items_digest
