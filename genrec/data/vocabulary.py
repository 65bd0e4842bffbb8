"""Item indices and action codes: which number stands for which original id.

The vocabulary is held once, where the job runs, and by no task: a run says which items it has, each once, and the job
writes beside it where these stand in the vocabulary. Tasks read such positions of the items they meet, nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.runs import load_items, save_indices
from genrec.data.schema import items_schema
from genrec.data.stable_hash import Hashes, Integers, unify
from genrec.errors import DataError

MAX_ACTIONS = 255  # an action is one byte, and 0 means none
_MERGE_ROWS = 4_000_000  # items of runs that wait until they are added up
_CAST_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every item of the log by rising hash, equal hashes by rising id, with the number of its events."""

    hashes: Hashes
    items: pa.Array
    counts: Integers

    def __len__(self) -> int:
        return len(self.items)

    def find(self, hashes: Hashes, items: pa.Array) -> Integers:
        """Positions of items, all of which are in the vocabulary."""
        positions: Integers = np.searchsorted(self.hashes, hashes)
        shared = np.flatnonzero(self.hashes[1:] == self.hashes[:-1])
        if len(shared):  # of a hash that two items share, the id decides; there is hardly ever one
            shared = np.union1d(shared, shared + 1)
            places = pc.index_in(items, value_set=self.items.take(pa.array(shared)))
            named = places.is_valid().to_numpy(zero_copy_only=False)
            positions[named] = shared[places.drop_null().to_numpy()]
        return positions


def build_vocabulary(runs: Iterable[str], *, integer_items: bool) -> Vocabulary:
    """Adds up the items of all runs and writes beside each run where its items stand.

    Holds the vocabulary about three times for a moment, and the items of a few runs.
    """
    files = tuple(runs)
    merged: Vocabulary | None = None
    waiting: list[Vocabulary] = []
    for file in files:
        waiting.append(_read_items(file, integer_items))
        if sum(len(part) for part in waiting) > max(_MERGE_ROWS, len(merged) if merged else 0):
            merged = _add_up([*([merged] if merged else []), *waiting])
            waiting = []
    vocabulary = _add_up([*([merged] if merged else []), *waiting])
    for file in files:
        part = _read_items(file, integer_items)
        save_indices(file, vocabulary.find(part.hashes, part.items))
    return vocabulary


def _read_items(file: str, integer_items: bool) -> Vocabulary:
    table = load_items(file)
    items = table["item"].chunk(0)
    # Tens of millions of ids have more text than the offsets of a plain string array can count.
    items = items.cast(pa.int64() if integer_items or pa.types.is_integer(items.type) else pa.large_string())
    return Vocabulary(table["hash"].to_numpy(), items, table["count"].to_numpy())


def _add_up(parts: list[Vocabulary]) -> Vocabulary:
    hashes = np.concatenate([part.hashes for part in parts])
    items = pa.concat_arrays([part.items for part in parts])
    first, codes = unify(hashes, items)
    counts = np.bincount(codes, weights=np.concatenate([part.counts for part in parts]), minlength=len(first))
    return Vocabulary(hashes[first], items.take(pa.array(first)), counts.astype(np.int64))


def order_items(items: pa.Array, counts: Integers, stays: npt.NDArray[np.bool_]) -> Integers:
    """Positions of the items that stay in the order of their indices: by falling count, then by rising id."""
    present = np.flatnonzero(stays)
    by_id = present[pc.array_sort_indices(items.take(pa.array(present))).to_numpy()]
    order: Integers = by_id[np.argsort(-counts[by_id], kind="stable")]
    return order


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
    """The content of `items.parquet`; `items` (item, count) and `train_counts` [num_items] are in index order.

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


def numbered_items(vocabulary: Vocabulary, order: Integers, counts: Integers) -> pa.Table:
    """Item and count in the order of their indices."""
    items = vocabulary.items.take(pa.array(order))
    if pa.types.is_large_string(items.type):
        blocks = [items.slice(first, _CAST_ROWS).cast(pa.string()) for first in range(0, len(items), _CAST_ROWS)]
        items = pa.chunked_array(blocks, pa.string())
    return pa.table({"item": items, "count": counts[order]})
