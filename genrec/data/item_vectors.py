"""Frozen vectors of the items' content: from a Parquet file to `item_vectors.npy`, whose row i is item i's.

    check_vectors    before anything is read: the files, their columns and the length of the vectors
    join_vectors     all ids, once: which item each row is for, which items are cold; then the rows, batch by batch,
                     into a memory-mapped file, so vectors need no memory

Row 0, padding, and the rows of items without a vector are zeros. A vector of zeros says nothing and counts as none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig, ItemVectorsConfig
from genrec.data.log_files import LogFile, find_files, unreadable
from genrec.data.manifest import VectorFacts, file_digest
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError

BATCH_ROWS = 4_096
_BATCH_NUMBERS = 2**21


class ItemVectors(NamedTuple):
    """vectors [num_items + 1, dim] fp32, zeros where there is none; is_trained [num_items + 1]: has training events."""

    vectors: npt.NDArray[np.float32]
    is_trained: npt.NDArray[np.bool_]


def vectors_for(config: ExperimentConfig, folder: str | Path) -> ItemVectors | None:
    """The vectors in a prepared set or an export, mapped into memory; None when the model reads none.

    Raises DataError when they cannot be read or are not of the items there.
    """
    if config.inputs.item_vectors is None:
        return None
    folder = at_hand(folder)
    path = folder / ITEM_VECTORS_FILE
    try:
        items = pq.read_table(folder / ITEMS_FILE, columns=["index", "train_count"])
        # Copy-on-write, because torch wants arrays that may be written; nothing is.
        vectors = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read ({error}); run `genrec prepare CONFIG --overwrite` with data.item_vectors, or copy "
            "the whole folder."
        ) from error
    if len(vectors) != len(items) + 1:
        raise DataError(f"{path} has {len(vectors) - 1} vectors for {len(items)} items; prepare the data set again.")
    is_trained = np.zeros(len(vectors), dtype=np.bool_)
    is_trained[items["index"].to_numpy()] = items["train_count"].to_numpy() > 0
    return ItemVectors(vectors, is_trained)


def has_vector(prepared: str | Path) -> npt.NDArray[np.bool_] | None:
    """Which items of a prepared set have a vector, [num_items + 1]; None when the set has none.

    Raises DataError when they cannot be read.
    """
    path = at_hand(prepared) / ITEM_VECTORS_FILE
    if not path.exists():
        return None
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run `genrec prepare CONFIG --overwrite`.") from error
    return np.concatenate(
        [vectors[first : first + BATCH_ROWS].any(axis=1) for first in range(0, len(vectors), BATCH_ROWS)]
    )


def check_vectors(config: ItemVectorsConfig) -> int:
    """The length of the vectors; raises DataError when the files, their columns or their lengths are not right."""
    return _open(config).dim


class _Source(NamedTuple):
    """The files, and how long their vectors are."""

    config: ItemVectorsConfig
    files: tuple[LogFile, ...]
    dim: int

    def batches(self, column: str) -> Iterator[tuple[LogFile, pa.Array]]:
        """The values of a column, file by file, a batch at a time."""
        num_rows = max(1, min(BATCH_ROWS, _BATCH_NUMBERS // self.dim))
        for file in self.files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(num_rows, columns=[column]):
                    yield file, batch.column(0)

    def ids(self) -> pa.Array:
        """The item ids of all rows as text, [num_rows]."""
        found = [
            (file, values.cast(pa.string()).cast(pa.large_string())) for file, values in self.batches(self.config.item)
        ]
        for file, values in found:
            if values.null_count:
                raise DataError(f"{file.path} has rows without an id in column {self.config.item!r}; drop them.")
        return pa.concat_arrays([pa.array([], pa.large_string()), *(values for _, values in found)])


def _open(config: ItemVectorsConfig) -> _Source:
    files = find_files(config.path, (".parquet",))
    dims: dict[int, LogFile] = {}
    for file in files:
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
            for setting, name in (("item", config.item), ("vector", config.vector)):
                if schema.names.count(name) != 1:
                    raise DataError(
                        f"{file.path} must have one column {name!r} (it has {', '.join(schema.names)}); set "
                        f"data.item_vectors.{setting} to the right one."
                    )
            _check_types(file, schema.field(config.item).type, schema.field(config.vector).type)
            dim = _dim(parquet, config.vector)
        if dim is not None:
            dims.setdefault(dim, file)
    if not dims or 0 in dims:
        raise DataError(f"{config.path} holds no vector in column {config.vector!r}; give each item a list of numbers.")
    if len(dims) > 1:
        (first, here), (second, there) = list(dims.items())[:2]
        raise DataError(
            f"{here.path} has vectors of {first} numbers and {there.path} of {second}; all must be of one model."
        )
    return _Source(config, files, next(iter(dims)))


def _check_types(file: LogFile, item: pa.DataType, vector: pa.DataType) -> None:
    item = item.value_type if pa.types.is_dictionary(item) else item
    if not (pa.types.is_integer(item) or pa.types.is_string(item) or pa.types.is_large_string(item)):
        raise DataError(f"{file.path} has item ids of type {item}; use integers or strings, as the log has them.")
    is_list = pa.types.is_list(vector) or pa.types.is_large_list(vector) or pa.types.is_fixed_size_list(vector)
    if not is_list or not pa.types.is_floating(vector.value_type):
        raise DataError(f"{file.path} has vectors of type {vector}; use lists of floats.")


def _dim(parquet: pq.ParquetFile, name: str) -> int | None:
    """Numbers in the first vector of a file; None when it has none."""
    kind = parquet.schema_arrow.field(name).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(BATCH_ROWS, columns=[name]):
        lengths = pc.list_value_length(batch.column(0)).drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return None


@contextmanager
def _opened(file: LogFile) -> Iterator[pq.ParquetFile]:
    try:
        # As it comes, Arrow reads ahead and takes as much memory as the file has bytes.
        with file.open() as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error


def join_vectors(config: ItemVectorsConfig, items: pa.Table, folder: Path) -> tuple[pa.Table, VectorFacts]:
    """Writes `item_vectors.npy` into `folder`; the catalogue with its cold items, and what was written.

    `items` (item, count) are in index order; with `cold_items` those of the file that are not among them are added, by
    rising id, with a count of 0. Raises DataError when an item has two vectors, a vector is not all numbers or of
    another length than the others, or none is of an item of the log.
    """
    source = _open(config)
    ids = source.ids()
    known = items["item"].cast(pa.large_string()).combine_chunks()
    rows = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy().astype(np.int64) + 1  # 0: not in the log
    if not rows.any():
        raise DataError(
            f"{config.path} has {len(ids):,} items and none of them is in the log (ids there are like "
            f"{items['item'][0].as_py()!r}, here like {ids[0].as_py()!r}); set data.item_vectors.item to their column."
        )
    if config.cold_items:
        strangers = np.flatnonzero(rows == 0)
        items, rows[strangers] = _with_cold(config, items, ids.take(pa.array(strangers)))
    _refuse_twice(config, ids, rows)
    path = folder / ITEM_VECTORS_FILE
    num_vectors = _write(source, ids, rows, path, len(items))
    return items, VectorFacts(
        dim=source.dim,
        num_items=num_vectors,
        num_cold_items=int((items["count"].to_numpy() == 0).sum()),
        num_bytes=path.stat().st_size,
        sha256=file_digest(path),
    )


def _with_cold(config: ItemVectorsConfig, items: pa.Table, ids: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The catalogue with the items `ids` (as text) behind it, and the index of each of them, [num_ids]."""
    kind = items.schema.field("item").type
    if pa.types.is_integer(kind):
        odd = ids.filter(pc.invert(pc.match_substring_regex(ids, "^(0|-?[1-9][0-9]{0,17})$")))
        if len(odd):
            raise DataError(
                f"The log has {kind} item ids, and {config.path} has cold items with others, {odd[0].as_py()!r} for "
                "one; drop these rows, or set data.item_vectors.cold_items to false."
            )
    typed = ids.cast(pa.string()).cast(kind)
    new = typed.unique()
    new = new.take(pc.array_sort_indices(new))
    added = pa.table({"item": new, "count": pa.array(np.zeros(len(new), dtype=np.int64))})
    numbers: npt.NDArray[np.int64] = pc.index_in(typed, value_set=new).to_numpy() + 1 + len(items)
    return pa.concat_tables([items, added]), numbers


def _refuse_twice(config: ItemVectorsConfig, ids: pa.Array, rows: npt.NDArray[np.int64]) -> None:
    times = np.bincount(rows)
    if (times[1:] > 1).any():
        row = int(np.flatnonzero((times[rows] > 1) & (rows > 0))[0])
        raise DataError(
            f"{config.path} has {times[rows[row]]} rows for item {ids[row].as_py()!r}; keep one row for each item."
        )


def _write(source: _Source, ids: pa.Array, rows: npt.NDArray[np.int64], path: Path, num_items: int) -> int:
    """Writes the vector of each row that has an item, and returns how many items have one."""
    shape = (num_items + 1, source.dim)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    first = num_vectors = 0
    for file, column in source.batches(source.config.vector):
        wanted = rows[first : first + len(column)] * column.is_valid().to_numpy(zero_copy_only=False)
        places = np.flatnonzero(wanted)
        vectors, bad = _matrix(column.take(pa.array(places)), source.dim)
        if bad.any():
            row = int(places[bad.argmax()])
            held = len(column[row].as_py())
            problem = f"{held} numbers, and others have {source.dim}" if held != source.dim else "a value of no number"
            raise DataError(
                f"{file.path} has a vector with {problem} (item {ids[first + row].as_py()!r}); mend or drop the row."
            )
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        if source.config.normalize:
            vectors /= np.where(lengths > 0, lengths, 1).astype(np.float32)[:, None]
        table[wanted[places]] = vectors
        num_vectors += int((lengths > 0).sum())
        first += len(column)
    table.flush()
    return num_vectors


def _matrix(lists: pa.Array, dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Vectors [num_rows, dim], and which of them are no vectors: of another length, or with a null, NaN or infinity."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if (lengths != dim).any():
        return np.zeros((len(lists), dim), dtype=np.float32), lengths != dim
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)  # a null becomes NaN
    with np.errstate(over="ignore"):
        vectors = values.astype(np.float32).reshape(-1, dim)
    return vectors, ~np.isfinite(vectors).all(axis=1)
