"""Sorts the rows of a block into events and bad rows, each with one reason, a whole column at a time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.log_files import FileError
from genrec.data.rejected import REJECTED_SCHEMA
from genrec.data.timestamps import MICROSECONDS, to_microseconds

REASONS = (
    "not UTF-8",
    "null user",
    "null item",
    "unparsable time",
    "time out of range",
    "time after max_time",
    "unparsable value",
    "negative value",
)
"""Why a row is bad; a row that is bad in several ways counts under the first."""

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


@dataclass(frozen=True, slots=True)
class CheckedBlock:
    """Events (user, item, time in microseconds?, action?, value?) in the order of the block, and the rest."""

    events: pa.Table
    rejected: pa.Table


def check_block(
    block: pa.Table, time_unit: str, file: str, first_row: int, max_time: int | None = None
) -> CheckedBlock:
    """The block's events and its bad rows; `first_row` is the row of the file that the block starts with.

    Events after second `max_time` are bad. Raises FileError when a column has a type that can hold no id, time, ...
    """
    block, broken = _mend_text(block)
    try:
        events, bad = _read_columns(block, time_unit, max_time)
    except FileError as error:
        raise FileError(f"{file}: {error}", error.reason) from error
    bad = [broken, *bad]
    is_bad = np.logical_or.reduce(bad)
    if not is_bad.any():
        return CheckedBlock(events, REJECTED_SCHEMA.empty_table())
    reason = np.select(bad, list(range(len(bad))), default=-1)
    rows = np.flatnonzero(is_bad)
    return CheckedBlock(events.filter(pa.array(~is_bad)), _describe(block, rows, reason[rows], file, first_row))


def _read_columns(
    block: pa.Table, time_unit: str, max_time: int | None
) -> tuple[pa.Table, list[npt.NDArray[np.bool_]]]:
    """The columns of events, and for every reason after the first which rows are bad."""
    users = normal_ids(block["user"], "user")
    items = normal_ids(block["item"], "item")
    columns: dict[str, pa.Array] = {"user": users, "item": items}
    bad = [_null(users), _null(items)]
    nowhere = np.zeros(len(block), dtype=np.bool_)
    if "time" in block.column_names:
        times, out_of_range = to_microseconds(_flat(block["time"]), time_unit)
        columns["time"] = times
        bad += [_null(times) & ~out_of_range, out_of_range]
        end = None if max_time is None else (max_time + 1) * MICROSECONDS
        bad.append(nowhere if end is None else _true(pc.greater_equal(times, end)))
    else:
        bad += [nowhere, nowhere, nowhere]
    if "value" in block.column_names:
        values, unparsable = _to_numbers(_flat(block["value"]))
        columns["value"] = values
        bad += [unparsable, _true(pc.less(values, 0))]
    if "action" in block.column_names:
        columns["action"] = _to_names(_flat(block["action"]))
    return pa.table(columns), bad


def _mend_text(block: pa.Table) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The block without text that is not UTF-8 (Parquet does not check it), and which rows had some."""
    broken = np.zeros(len(block), dtype=np.bool_)
    for index, name in enumerate(block.column_names):
        column = _flat(block[name])
        if not _is_text(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            raw = column.cast(pa.large_binary())
            texts = pa.array(
                [value.decode(errors="backslashreplace") for value in raw.to_pylist() if value is not None]
            )
            known = ~_null(column)
            place = pa.array(np.cumsum(known) - 1, mask=~known)
            mended = texts.take(place)
            broken |= _true(pc.not_equal(mended.cast(pa.large_binary()), raw))
            block = block.set_column(index, name, mended)
    return block, broken


def normal_ids(column: pa.ChunkedArray, role: str) -> pa.Array:
    """Ids as int64 or string, null where missing or empty; raises FileError for ids that fit neither."""
    ids = _flat(column)
    kind = ids.type
    if pa.types.is_null(kind):
        return ids.cast(pa.string())
    if _is_text(kind):
        text = ids.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if pa.types.is_floating(kind):
        ids = pc.if_else(pc.is_nan(ids), pa.scalar(None, kind), ids)
    elif not pa.types.is_integer(kind):
        raise FileError(f"The {role} column has type {kind}; store ids as integers or strings.", "type of a column")
    try:
        return ids.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise FileError(
            f"The {role} column holds {kind} values that are no 64-bit integers; store ids as strings.",
            "type of a column",
        ) from error


def _to_numbers(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """float64 values, null where missing, and which rows hold something that is no number."""
    known = ~_null(values)
    if _is_text(values.type):
        text = pc.utf8_trim_whitespace(values)
        numeric = pc.match_substring_regex(text, _NUMBER)
        values = pc.if_else(numeric, pc.utf8_ltrim(text, "+"), pa.scalar(None, values.type))
        unparsable = known & ~pc.fill_null(numeric, False).to_numpy(zero_copy_only=False)
    else:
        unparsable = np.zeros(len(values), dtype=np.bool_)
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FileError(f"The value column has type {values.type}; store numbers.", "type of a column") from error
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers), unparsable


def _to_names(actions: pa.Array) -> pa.Array:
    try:
        return actions.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FileError(f"The action column has type {actions.type}; store text.", "type of a column") from error


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
    columns["line"] = missing
    return pa.table(columns, schema=REJECTED_SCHEMA)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain values."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _true(condition: pa.Array) -> npt.NDArray[np.bool_]:
    """Where a condition holds; null does not."""
    holds: npt.NDArray[np.bool_] = pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return holds


def _null(values: pa.Array) -> npt.NDArray[np.bool_]:
    nulls: npt.NDArray[np.bool_] = pc.is_null(values).to_numpy(zero_copy_only=False)
    return nulls
