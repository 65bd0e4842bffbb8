"""Numbers, durations and sizes are printed as people read them."""

import math

import pytest

from genrec.reporting import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.040612, "0.04061"),
        (5.5, "5.5"),
        (12_345.6, "12,346"),
        (0, "0"),
        (-3.25, "-3.25"),
        (math.nan, "–"),
        (math.inf, "–"),
        (None, "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (9.96, "10 s"),
        (38.4, "38 s"),
        (59.7, "1 min 00 s"),
        (252, "4 min 12 s"),
        (3_599.6, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
        (math.nan, "–"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.0134, "1.3%"), (0.0996, "10%"), (0.938, "94%"), (None, "–")])
def test_percent(fraction: float | None, text: str) -> None:
    assert formats.percent(fraction) == text


@pytest.mark.parametrize(
    ("value", "baseline", "text"),
    [(0.0406, 0.0045, "9.02×"), (0.5, 0.001, "500×"), (0.1, 0.0, "–"), (0.1, None, "–"), (math.nan, 0.1, "–")],
)
def test_ratio(value: float, baseline: float | None, text: str) -> None:
    assert formats.ratio(value, baseline) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 bytes"), (1_536, "1.5 KiB"), (1.31e9, "1.22 GiB"), (2**41, "2 TiB"), (None, "–")]
)
def test_num_bytes(value: float | None, text: str) -> None:
    assert formats.num_bytes(value) == text


def test_moment() -> None:
    assert formats.moment(1_772_000_000) == "2026-02-25 06:13 UTC"
    assert formats.moment(math.nan) == "–"
    assert formats.moment(1e18) == "–"
    assert formats.day(1_772_000_000) == "2026-02-25"
    assert formats.day(1e18) == "–"


def test_plain_values_look_like_yaml() -> None:
    value = {"a": None, "b": [1, 2.5, True], "c": "text"}
    assert formats.plain(value) == "{a: null, b: [1, 2.5, true], c: text}"
