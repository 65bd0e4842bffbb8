"""Event times of every column type become microseconds; what is no time becomes null."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from genrec.data.timestamps import to_microseconds
from genrec.errors import DataError

SECOND = 1_000_000


def parse(values: list[object], kind: pa.DataType | None = None, unit: str = "s") -> list[int | None]:
    micros, far = to_microseconds(pa.array(values, kind), unit)
    assert micros.type == pa.int64() and len(far) == len(values)
    return micros.to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12 * SECOND),
        (" -3 ", -3 * SECOND),
        ("+13", 13 * SECOND),
        ("1.5e3", 1_500 * SECOND),
        ("881250949.25", 881_250_949 * SECOND + 250_000),
        ("1970-01-02", 86_400 * SECOND),
        ("2020-02-29T00:00:01Z", 1_582_934_401 * SECOND),
        ("2020-02-29 01:00:01.5+01:00", 1_582_934_401 * SECOND + 500_000),
        ("2020-02-28 23:30:01-0030", 1_582_934_401 * SECOND),
        ("2020-02-29 00:00", 1_582_934_400 * SECOND),
        ("2020-02-30", None),
        ("2020-13-01", None),
        ("2020-01-01 24:30:00", None),
        ("29.02.2020", None),
        ("noon", None),
        ("1 2", None),
        ("", None),
        (None, None),
    ],
)
def test_text(text: str | None, expected: int | None) -> None:
    # Beside a time that is an integer and one that is not, so that no shortcut for a whole column is taken.
    assert parse(["7", "x", text], pa.string()) == [7 * SECOND, None, expected]
    assert parse([text], pa.large_string()) == [expected]


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1_000), ("us", SECOND)])
def test_integers_count_units(unit: str, per_second: int) -> None:
    expected = [5 * SECOND, None, -2 * SECOND]
    for kind in (pa.int32(), pa.int64(), pa.float64()):
        assert parse([5 * per_second, None, -2 * per_second], kind, unit) == expected
    assert parse([str(5 * per_second), "x", str(-2 * per_second)], pa.string(), unit) == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_bring_their_unit(unit: str) -> None:
    moments = pa.array([datetime.datetime(2020, 2, 29, 0, 0, 1), None]).cast(pa.timestamp(unit))
    assert to_microseconds(moments, "ms")[0].to_pylist() == [1_582_934_401 * SECOND, None]
    in_zone = moments.cast(pa.timestamp(unit, "Europe/Stockholm"))  # the same instant, shown elsewhere
    assert to_microseconds(in_zone, "s")[0].to_pylist() == [1_582_934_401 * SECOND, None]


def test_nanoseconds_keep_their_order() -> None:
    assert parse([1_999, 2_000, -1], pa.timestamp("ns")) == [1, 2, -1]


def test_dates() -> None:
    assert parse([datetime.date(1970, 1, 2)], pa.date32()) == [86_400 * SECOND]
    assert parse([datetime.date(1970, 1, 2)], pa.date64()) == [86_400 * SECOND]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1_700_000_000_000, 5, None], pa.int64()),
        ([2**64 - 1, 5, None], pa.uint64()),
        ([1.7e12, 5.0, None], pa.float64()),
        ([float("inf"), 5.0, float("nan")], pa.float64()),
        (["1700000000000", "5", "x"], pa.string()),
        (["99999999999999999999999", "5", "x"], pa.string()),
    ],
)
def test_beyond_the_year_9999_is_out_of_range(values: list[object], kind: pa.DataType) -> None:
    micros, far = to_microseconds(pa.array(values, kind), "s")
    assert micros.to_pylist() == [None, 5 * SECOND, None]
    np.testing.assert_array_equal(far, [True, False, False])


def test_a_column_of_nulls_and_one_of_another_type() -> None:
    assert parse([None, None], pa.null()) == [None, None]
    with pytest.raises(DataError, match="type bool"):
        parse([True], pa.bool_())
