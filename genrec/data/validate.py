"""Sorts the rows of a block into events and bad rows, each with one reason, a whole column at a time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.timestamps import to_microseconds
from genrec.errors import DataError

REASONS = ("null user", "null item", "unparsable time", "time out of range", "unparsable value", "negative value")
"""Why a row is bad; a row that is bad in several ways counts under the first."""

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("user", pa.string()),
        pa.field("item", pa.string()),
        pa.field("time", pa.string()),
        pa.field("value", pa.string()),
    ]
)
"""Rows of `rejected/`: `row` counts the file's well-formed rows from 0."""

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


@dataclass(frozen=True, slots=True)
class CheckedBlock:
    """Events (user, item, time in microseconds?, action?, value?) in the order of the block, and the rest."""

    events: pa.Table
    rejected: pa.Table


def check_block(block: pa.Table, time_unit: str, file: str, first_row: int) -> CheckedBlock:
    """The block's events and its bad rows; `first_row` is the row of the file that the block starts with.

    Raises DataError when a column has a type that can hold no id or no time.
    """
    users = normal_ids(block["user"], "user")
    items = normal_ids(block["item"], "item")
    columns: dict[str, pa.Array] = {"user": users, "item": items}
    bad = [_null(users), _null(items)]
    nowhere = np.zeros(len(block), dtype=np.bool_)
    if "time" in block.column_names:
        times, out_of_range = to_microseconds(_flat(block["time"]), time_unit)
        columns["time"] = times
        bad += [_null(times) & ~out_of_range, out_of_range]
    else:
        bad += [nowhere, nowhere]
    if "value" in block.column_names:
        values, unparsable = _to_numbers(_flat(block["value"]))
        columns["value"] = values
        bad += [unparsable, pc.fill_null(pc.less(values, 0), False).to_numpy(zero_copy_only=False)]
    if "action" in block.column_names:
        columns["action"] = _flat(block["action"]).cast(pa.string())
    is_bad = np.logical_or.reduce(bad)
    events = pa.table(columns)
    if not is_bad.any():
        return CheckedBlock(events, REJECTED_SCHEMA.empty_table())
    reason = np.select(bad, list(range(len(bad))), default=-1)
    rows = np.flatnonzero(is_bad)
    return CheckedBlock(events.filter(pa.array(~is_bad)), _describe(block, rows, reason[rows], file, first_row))


def normal_ids(column: pa.ChunkedArray, role: str) -> pa.Array:
    """Ids as int64 or string, null where missing or empty; raises DataError for ids that fit neither."""
    ids = _flat(column)
    kind = ids.type
    if pa.types.is_null(kind):
        return ids.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = ids.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if pa.types.is_floating(kind):
        ids = pc.if_else(pc.is_nan(ids), pa.scalar(None, kind), ids)
    elif not pa.types.is_integer(kind):
        raise DataError(f"The {role} column has type {kind}; store ids as integers or strings.")
    try:
        return ids.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"The {role} column holds {kind} values that are no 64-bit integers; store ids as strings."
        ) from error


def _to_numbers(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """float64 values, null where missing, and which rows hold something that is no number."""
    known = ~_null(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        numeric = pc.match_substring_regex(text, _NUMBER)
        values = pc.if_else(numeric, pc.utf8_ltrim(text, "+"), pa.scalar(None, values.type))
        unparsable = known & ~pc.fill_null(numeric, False).to_numpy(zero_copy_only=False)
    else:
        unparsable = np.zeros(len(values), dtype=np.bool_)
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"The value column has type {values.type}; store numbers.") from error
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers), unparsable


def _describe(
    block: pa.Table, rows: npt.NDArray[np.int64], reasons: npt.NDArray[np.int64], file: str, first_row: int
) -> pa.Table:
    chosen = block.take(pa.array(rows))
    missing = pa.nulls(len(rows), pa.string())
    columns = {
        "reason": pa.array(REASONS, pa.string()).take(pa.array(reasons)),
        "file": pa.array([file], pa.string()).take(pa.array(np.zeros(len(rows), np.int64))),
        "row": pa.array(rows + first_row, pa.int64()),
    }
    for role in ("user", "item", "time", "value"):
        columns[role] = _flat(chosen[role]).cast(pa.string()) if role in chosen.column_names else missing
    return pa.table(columns, schema=REJECTED_SCHEMA)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain values."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _null(values: pa.Array) -> npt.NDArray[np.bool_]:
    nulls: npt.NDArray[np.bool_] = pc.is_null(values).to_numpy(zero_copy_only=False)
    return nulls
