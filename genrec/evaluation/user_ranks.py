"""The rank of every evaluated user, saved in the run directory so that runs can be compared user by user.
No torch, so that reports can use it.

    RUN/ranks-test.parquet   user (int64), rank, target, history_length (int32), in the order of the users

About 5 to 9 bytes a user on disk. Of more than MAX_SAVED_USERS users a sample is kept, by a hash of the user, so that
two runs keep the same ones; the file stays below 100 MB.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.manifest import file_digest
from genrec.errors import DataError

MAX_SAVED_USERS = 10_000_000

SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("history_length", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class UserRanks:
    """Users in rising order with what SCHEMA says of each, `columns` [num_users, 4] int64; `step` of the weights, and
    `num_users` that were evaluated, of whom these are all or a sample."""

    columns: npt.NDArray[np.int64]
    step: int
    num_users: int

    @property
    def users(self) -> npt.NDArray[np.int64]:
        """User indices, [num_users]."""
        return self.columns[:, 0]

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Ranks of the users' targets, [num_users]; 1 is best."""
        return self.columns[:, 1]


def write_ranks(path: Path, ranks: UserRanks) -> str:
    """Replaces the file in one step and returns its digest, with which the metrics of the same ranks name it."""
    told = {"step": str(ranks.step), "num_users": str(ranks.num_users)}
    columns = [pa.array(ranks.columns[:, place]).cast(field.type) for place, field in enumerate(SCHEMA)]
    draft = path.with_name(path.name + ".tmp")
    # Neighbouring users differ by little, everything else is small numbers: deltas, then zstd.
    pq.write_table(
        pa.table(columns, schema=SCHEMA.with_metadata(told)),
        draft,
        compression="zstd",
        use_dictionary=False,
        column_encoding={field.name: "DELTA_BINARY_PACKED" for field in SCHEMA},
    )
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    digest = file_digest(draft)
    draft.replace(path)
    return digest


def read_ranks(path: Path) -> UserRanks:
    """What `write_ranks` wrote; raises DataError when there is no such file or it is damaged."""
    way_out = f"run `genrec evaluate {path.parent}`"
    if not path.is_file():
        raise DataError(f"{path} is missing, without it the run cannot be compared user by user; {way_out}.")
    try:
        table = pq.read_table(path)
        told = table.schema.metadata
        columns = np.stack([table[field.name].to_numpy().astype(np.int64) for field in SCHEMA], axis=1)
        return UserRanks(columns, int(told[b"step"]), int(told[b"num_users"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {way_out}.") from error
