"""Numbers, durations and moments as people read them. Nothing here knows HTML."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

MISSING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits (`0.04061`, `12,345`); a dash when there is no finite value."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def metric(value: float | None) -> str:
    """A ranking metric with four decimals; a dash when there is no finite value."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def metric_name(key: str) -> str:
    """`ndcg@10` as it is printed: `NDCG@10`."""
    return key.upper()


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def percent(fraction: float | None) -> str:
    """A fraction in percent: one decimal below 10%, none above."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{100 * fraction:.1f}%" if abs(fraction) < 0.0995 else f"{100 * fraction:.0f}%"


def ratio(value: float | None, baseline: float | None) -> str:
    """How many times `baseline` fits into `value`: `12.3×`."""
    if value is None or not baseline or not math.isfinite(value) or not math.isfinite(baseline):
        return MISSING
    times = value / baseline
    return f"{times:,.0f}×" if times >= 99.5 else f"{times:.3g}×"


def seconds(value: float | None) -> str:
    """A duration: `0.42 s`, `38 s`, `4 min 12 s`, `3 h 05 min`, `2 d 4 h`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 9.95:
        return f"{value:.2g} s" if value else "0 s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3_600)
    return f"{hours // 24} d {hours % 24} h"


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes in the unit that suits `largest`, and its name: `(2**30, "GiB")`."""
    for exponent, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 2**exponent:
            return float(2**exponent), name
    return 1.0, "bytes"


def num_bytes(value: float | None) -> str:
    """A size in binary units: `1.5 GiB`."""
    if value is None or not math.isfinite(value):
        return MISSING
    unit, name = byte_unit(value)
    return f"{number(value / unit, 3)} {name}"


def moment(time_s: float | None) -> str:
    """Unix seconds as `2026-03-01 14:05 UTC`; a dash when it is no moment of the calendar."""
    if time_s is None or not math.isfinite(time_s):
        return MISSING
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):  # beyond the years that a calendar date can hold
        return MISSING


def day(time_s: float | None) -> str:
    """Unix seconds as `2026-03-01` (UTC); a dash when it is no moment of the calendar."""
    return moment(time_s).partition(" ")[0]


def plain(value: Any) -> str:
    """Any JSON value on one line, scalars as YAML writes them: `null`, `true`, `[1, 5, 10]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain(child)}" for key, child in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(plain(child) for child in value) + "]"
    return str(value)
