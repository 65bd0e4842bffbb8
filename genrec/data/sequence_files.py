"""Reading the sequence files of a prepared set: the one way from (file, row group) to rows.

Every reader of sequences comes through here, so that what counts as a row of the set is decided once.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.errors import DataError


def read_row_group(folder: str | Path, path: str, group: int, columns: Sequence[str]) -> pa.Table:
    """The rows of one row group of `FOLDER/path` (as the manifest names it), in file order.

    Raises DataError when the file is missing or damaged.
    """
    try:
        with pq.ParquetFile(Path(folder) / path) as parquet:
            return parquet.read_row_group(group, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{Path(folder) / path} cannot be read (row group {group}): {error}; "
            "run `genrec prepare CONFIG --overwrite`."
        ) from error
