"""Event times of any column type to microseconds since 1970, a whole column at a time.

Microseconds order events inside a second; a prepared set stores seconds. Integers count `unit`, text holds an integer,
a decimal number of seconds or an ISO 8601 moment (UTC when it names no zone).
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.log_files import FileError

FIRST_SECOND = -62_135_596_800  # 0001-01-01
LAST_SECOND = 253_402_300_799  # 9999-12-31: later "seconds" are nearly always milliseconds
MICROSECONDS = 1_000_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": MICROSECONDS, "ns": 1_000_000_000}
_INTEGER = r"^\s*[-+]?\d{1,18}\s*$"
_DECIMAL = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_ISO = (
    r"^\s*(?P<date>\d{4}-\d{2}-\d{2})(?:[T ](?P<clock>\d{2}:\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d+))?)?)?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?\s*$"
)


def to_microseconds(column: pa.Array, unit: str) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Microseconds [num_rows], null where unparsable, and which rows lie outside the years 1 to 9999.

    Raises FileError for a column type that cannot be a time.
    """
    kind = column.type
    if pa.types.is_integer(kind):
        return _from_integers(column, unit)
    if pa.types.is_timestamp(kind):
        return _from_integers(column.cast(pa.timestamp(kind.unit)).cast(pa.int64()), kind.unit)
    if pa.types.is_date(kind):
        return _from_integers(column.cast(pa.timestamp("s")).cast(pa.int64()), "s")
    if pa.types.is_floating(kind):
        return _from_floats(column.cast(pa.float64()), unit)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(column.cast(pa.string()), unit)
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.int64()), np.zeros(len(column), dtype=np.bool_)
    raise FileError(f"The time column has type {kind}; store integers, timestamps or text.", "type of a column")


def _from_integers(column: pa.Array, unit: str) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    per_second = _PER_SECOND[unit]
    limit = np.iinfo(np.int64).max
    known = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    lower, upper = max(FIRST_SECOND * per_second, -limit), min((LAST_SECOND + 1) * per_second - 1, limit)
    inside = (values >= lower) & (values <= upper)
    safe = np.where(inside, values, 0).astype(np.int64)
    # In this order nothing overflows: one of the two factors is 1.
    micros = safe // max(per_second // MICROSECONDS, 1) * max(MICROSECONDS // per_second, 1)
    return pa.array(micros, mask=~(known & inside)), known & ~inside


def _from_floats(column: pa.Array, unit: str) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    values = column.to_numpy(zero_copy_only=False)
    known = ~np.isnan(values)
    seconds = np.where(known, values, 0.0) / _PER_SECOND[unit]
    inside = (seconds >= FIRST_SECOND) & (seconds < LAST_SECOND + 1)
    micros = np.rint(np.where(inside, seconds, 0.0) * MICROSECONDS).astype(np.int64)
    return pa.array(micros, mask=~(known & inside)), known & ~inside


def _from_text(column: pa.Array, unit: str) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    try:
        return _from_integers(column.cast(pa.int64()), unit)
    except pa.ArrowInvalid:
        pass_through = pa.nulls(len(column), pa.string())
    integers = pc.match_substring_regex(column, _INTEGER)
    numbers = pc.match_substring_regex(column, _DECIMAL)
    whole = pc.if_else(integers, pc.utf8_trim_whitespace(column), pass_through)
    decimal = pc.if_else(pc.and_not(numbers, integers), pc.utf8_trim_whitespace(column), pass_through)
    from_whole, far_whole = _from_integers(pc.utf8_ltrim(whole, "+").cast(pa.int64()), unit)
    from_decimal, far_decimal = _from_floats(pc.utf8_ltrim(decimal, "+").cast(pa.float64()), unit)
    moments = _from_iso(pc.if_else(pc.invert(numbers), column, pass_through))
    from_moment, far_moment = _from_integers(moments, "us")  # the year 0, and the last hours of 9999 west of UTC
    return pc.coalesce(from_whole, from_decimal, from_moment), far_whole | far_decimal | far_moment


def _from_iso(column: pa.Array) -> pa.Array:
    parts = pc.extract_regex(column, _ISO)

    def part(name: str, default: str) -> pa.Array:
        text = pc.struct_field(parts, name)
        return pc.if_else(pc.equal(text, ""), default, text)

    stamp = pc.binary_join_element_wise(part("date", ""), part("clock", "00:00"), " ")
    stamp = pc.binary_join_element_wise(stamp, part("second", "00"), ":")
    layout = "%Y-%m-%d %H:%M:%S"
    moment = pc.strptime(stamp, format=layout, unit="s", error_is_null=True)
    # strptime turns 31 February into 2 March; a moment that does not print as it was read is none.
    real = pc.equal(pc.strftime(moment, format=layout), stamp)
    seconds = pc.if_else(real, moment.cast(pa.int64()), pa.scalar(None, pa.int64()))
    zone = pc.replace_substring(pc.if_else(pc.equal(part("zone", "Z"), "Z"), "+0000", part("zone", "Z")), ":", "")
    minutes = pc.add(
        pc.multiply(pc.utf8_slice_codeunits(zone, 1, 3).cast(pa.int64()), 60),
        pc.utf8_slice_codeunits(zone, 3, 5).cast(pa.int64()),
    )
    shift = pc.if_else(pc.equal(pc.utf8_slice_codeunits(zone, 0, 1), "-"), pc.negate(minutes), minutes)
    fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(part("fraction", "0"), 6, "0"), 0, 6).cast(pa.int64())
    return pc.add(pc.multiply(pc.subtract(seconds, pc.multiply(shift, 60)), MICROSECONDS), fraction)
