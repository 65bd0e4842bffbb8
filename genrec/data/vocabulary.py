"""Item indices and action codes: which number stands for which original id."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.schema import items_schema
from genrec.errors import DataError

MAX_ACTIONS = 255  # an action is one byte, and 0 means none


def order_items(items: pa.Table) -> pa.Table:
    """Items (item, count) in the order of their indices 1, 2, ...: by falling count, then by rising id."""
    return items.sort_by([("count", "descending"), ("item", "ascending")])


def name_actions(counts: Iterable[Mapping[str, int]]) -> tuple[str, ...]:
    """Names of actions 1, 2, ...: by falling count over all parts, then by name; raises DataError for too many."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    if len(total) > MAX_ACTIONS:
        raise DataError(
            f"The action column has {len(total)} different values, at most {MAX_ACTIONS} are possible; "
            "map it to fewer kinds of action, or leave out data.source.columns.action."
        )
    return tuple(sorted(total, key=lambda name: (-total[name], name)))


def items_table(items: pa.Table, train_counts: npt.NDArray[np.int64], info: pa.Table | None) -> pa.Table:
    """The content of `items.parquet`; `train_counts` [num_items] follow the order of `items`.

    Raises DataError when `info` names an item more than once.
    """
    columns = {
        "index": pa.array(np.arange(1, len(items) + 1)),
        "item": items["item"],
        "count": items["count"],
        "train_count": pa.array(train_counts),
        "type": pa.nulls(len(items), pa.string()),
        "title": pa.nulls(len(items), pa.string()),
    }
    if info is not None:
        keys = info["item"].combine_chunks()
        if (num_unique := len(pc.unique(keys))) != len(keys):
            raise DataError(
                f"The item table has {len(keys)} rows for {num_unique} items; keep one row for each item in "
                "data.source.items_path."
            )
        rows = pc.index_in(items["item"].cast(pa.string()), value_set=keys)
        for name in ("type", "title"):
            if name in info.column_names:
                columns[name] = info[name].take(rows)
    return pa.table(columns, schema=items_schema(items["item"].type))
