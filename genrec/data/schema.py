"""Names, types and layout of a prepared data set (contract 2). Nothing here reads or writes files.

    PREPARED/
      items.parquet               index, item, count, train_count, type?, title?     index from 1
      item_vectors.npy            float32 [num_items + 1, dim], where the items have vectors; zeros: this one has none
      part_train_counts.npy       int64 [num_items + 1, num_parts], in a mixture: train_count in each of its parts
      users.parquet               index, user                                        index from 0
      sequences/part-00000.parquet  user, length, items, times, actions, values?     a row is one user
      sequences/part-00000.superseded.npy  rows of that file that do not count any more, when there are any
      rejected/                   bad rows by reason, when there are any
      manifest.json               written last

Items are numbered by falling count when a set is prepared. An append leaves the numbers of users, items and actions as
they are and gives new ones the next, so counts need not fall any more, and users stand in files in any order.
Cold items, which only `data.item_vectors` knows, come after those of the log and have a count of 0.
Index 0 of the items is padding and has no row. Action 0 means that the log has no actions.
"""

from typing import Literal

import pyarrow as pa

Role = Literal["train", "validation", "test"]

PADDING_ITEM = 0
NO_TARGET = -1

ITEMS_FILE = "items.parquet"
ITEM_VECTORS_FILE = "item_vectors.npy"
PART_COUNTS_FILE = "part_train_counts.npy"
USERS_FILE = "users.parquet"
SEQUENCES_DIR = "sequences"
REJECTED_DIR = "rejected"
MANIFEST_FILE = "manifest.json"

SEQUENCES_SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("times", pa.list_(pa.int64()), nullable=False),
        pa.field("actions", pa.list_(pa.uint8()), nullable=False),
    ]
)
"""One row a user: index, number of events, and the events in time order (seconds)."""

VALUES = "values"
"""The column of a set with `data.keep_values`: a number for each event, NaN where it is unknown."""


def sequences_schema(*, values: bool) -> pa.Schema:
    """Schema of the sequence files, with the events' values or without."""
    if not values:
        return SEQUENCES_SCHEMA
    return SEQUENCES_SCHEMA.append(pa.field(VALUES, pa.list_(pa.float32()), nullable=False))


def items_schema(item_type: pa.DataType) -> pa.Schema:
    """Schema of `items.parquet` for original item ids of `item_type` (int64 or string)."""
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("item", item_type, nullable=False),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("train_count", pa.int64(), nullable=False),
            pa.field("type", pa.string()),
            pa.field("title", pa.string()),
        ]
    )


def users_schema(user_type: pa.DataType) -> pa.Schema:
    """Schema of `users.parquet` for original user ids of `user_type` (int64 or string)."""
    return pa.schema([pa.field("index", pa.int64(), nullable=False), pa.field("user", user_type, nullable=False)])
