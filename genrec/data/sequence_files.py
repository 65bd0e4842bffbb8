"""The rows of sequence files: the one way from (file, row group) to rows, and from sequences to a row group.

Every reader of sequences comes through here, so that what counts as a row of the set is decided once: a row whose user
was written anew by `genrec prepare --append` is *superseded*. Its number in the file stands in a list beside the file
(`part-00000.superseded.npy`, rising int64), and it is left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.schema import sequences_schema
from genrec.data.stored_set import at_hand
from genrec.errors import DataError


def read_row_group(folder: str | Path, path: str, group: int, columns: Sequence[str]) -> pa.Table:
    """The rows of one row group of `FOLDER/path` (as the manifest names it) that count, in file order.

    Raises DataError when the file is missing or damaged.
    """
    try:
        with pq.ParquetFile(at_hand(folder) / path) as parquet:
            table = parquet.read_row_group(group, columns=list(columns))
            superseded = load_superseded(folder, path)
            if not len(superseded):
                return table
            first = sum(parquet.metadata.row_group(before).num_rows for before in range(group))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{Path(folder) / path} cannot be read (row group {group}): {error}; "
            "run `genrec prepare CONFIG --overwrite`."
        ) from error
    begin, end = np.searchsorted(superseded, [first, first + len(table)])
    if begin == end:
        return table
    counts = np.ones(len(table), dtype=np.bool_)
    counts[superseded[begin:end] - first] = False
    return table.filter(pa.array(counts))


def locate_rows(folder: str | Path, path: str, columns: Sequence[str]) -> pa.Table:
    """Columns of all rows of `FOLDER/path` that count, and their place: `group`, and `row` in the file.

    Raises DataError when the file is missing or damaged.
    """
    try:
        with pq.ParquetFile(at_hand(folder) / path) as parquet:
            table = parquet.read(columns=list(columns))
            rows_per_group = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{Path(folder) / path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`."
        ) from error
    counts = np.ones(len(table), dtype=np.bool_)
    counts[load_superseded(folder, path)] = False
    table = table.append_column("group", pa.array(np.repeat(np.arange(len(rows_per_group)), rows_per_group)))
    return table.append_column("row", pa.array(np.arange(len(table)))).filter(pa.array(counts))


def write_row_group(
    writer: pq.ParquetWriter,
    users: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    items: npt.NDArray[np.int32],
    times: npt.NDArray[np.int64],
    actions: npt.NDArray[np.uint8],
    values: npt.NDArray[np.float32] | None = None,
) -> None:
    """Adds the sequences of `users` [num_users] as one row group; the events [num_events] stand user after user.

    `values` are given where the set keeps them.
    """
    borders = pa.array(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32))
    lists = [items, times, actions, *([] if values is None else [values])]
    events = [pa.ListArray.from_arrays(borders, pa.array(column)) for column in lists]
    columns = [pa.array(users), pa.array(lengths.astype(np.int32)), *events]
    writer.write_table(pa.Table.from_arrays(columns, schema=sequences_schema(values=values is not None)))


def superseded_path(folder: str | Path, path: str) -> Path:
    """Where the superseded rows of `FOLDER/path` are listed, when it has any."""
    return (at_hand(folder) / path).with_suffix(".superseded.npy")


def load_superseded(folder: str | Path, path: str) -> npt.NDArray[np.int64]:
    """Rising numbers of the rows of `FOLDER/path` that do not count; raises DataError when the list is damaged."""
    listed = superseded_path(folder, path)
    if not listed.exists():
        return np.zeros(0, dtype=np.int64)
    try:
        rows: npt.NDArray[np.int64] = np.load(listed, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{listed} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    return rows
