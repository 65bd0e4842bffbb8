"""The figures of a data set's page: lengths, popularity, events over time."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from genrec.reporting import formats
from genrec.reporting.data_facts import DAY_S, Lengths, Periods, Popularity
from genrec.reporting.plots import ACCENT, MUTED, SECOND, TICK_STEPS, Chart, draw_grid, short_count, svg_chart

MAX_LENGTH_TICKS = 9
NARROW = 30  # a log axis whose ends are less than this apart may have one decade in it, or none


def data_charts(lengths: Lengths, popularity: Popularity, periods: Periods | None) -> list[Chart]:
    """The charts in the order of the page: of items only where some are trained, over time where the log has times."""
    charts = [_length_chart(lengths)]
    if popularity.ranks:
        charts += [_popularity_chart(popularity), _concentration_chart(popularity)]
    return [*charts, _period_chart(periods)] if periods else charts


def _length_chart(lengths: Lengths) -> Chart:
    uppers = [bucket.upper for bucket in lengths.buckets]
    users = np.array([bucket.num_users for bucket in lengths.buckets], dtype=float)
    events = np.array([bucket.num_events for bucket in lengths.buckets], dtype=float)
    edges = np.array([uppers[0] / 2, *uppers])

    def draw(axes: Any) -> None:
        axes.stairs(100 * users / max(users.sum(), 1), edges, fill=True, color=ACCENT, alpha=0.75, linewidth=0)
        axes.stairs(100 * events / max(events.sum(), 1), edges, color=SECOND, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        every = -(-len(edges) // MAX_LENGTH_TICKS)
        axes.xaxis.set_major_locator(FixedLocator(edges[::every].tolist()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(position)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, min_n_ticks=3))
        draw_grid(axes, _percent)

    value = f"median {formats.count(lengths.median)}, longest {formats.count(lengths.longest)}"
    caption = "Events per user, by powers of two. Filled: share of users. Outlined: share of events that they have."
    return _chart("lengths", "Length of histories", value, caption, draw)


def _popularity_chart(popularity: Popularity) -> Chart:
    shares = 100 * np.array(popularity.shares)

    def draw(axes: Any) -> None:
        axes.plot(popularity.ranks, shares, color=ACCENT, linewidth=1.7, marker="o" if len(shares) <= 2 else None)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left=1)
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(position)))
        is_narrow = shares[0] < NARROW * shares[-1]
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,), numticks=6))
        draw_grid(axes, _percent)

    value = f"top 1% has {formats.percent(popularity.top_1_percent_share)}"
    caption = "Share of training events (percent) by rank of the item, the most frequent first; both axes logarithmic."
    return _chart("popularity", "Popularity of items", value, caption, draw)


def _concentration_chart(popularity: Popularity) -> Chart:
    items = 100 * np.array([0, *popularity.ranks, popularity.num_items]) / popularity.num_items
    held = 100 * np.array([0.0, *popularity.cumulative, 1.0])

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, dashes=(2.5, 2.5))
        axes.plot(items, held, color=ACCENT, linewidth=1.7)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: _percent(position)))
        draw_grid(axes, _percent)

    value = f"Gini {popularity.gini:.2f}"
    caption = "Share of training events that the most frequent items hold, by share of items. Dashed: all equal."
    return _chart("concentration", "Concentration on items", value, caption, draw)


def _period_chart(periods: Periods) -> Chart:
    values = np.array(periods.events_per_unit)
    width_s = periods.unit_s * periods.units_per_period
    starts_s = periods.first_s + width_s * np.arange(len(values))
    end_s = periods.first_s + periods.unit_s * periods.num_units
    edges = np.array([*starts_s, min(end_s, _last_second())]) / DAY_S  # matplotlib counts days since 1970

    def draw(axes: Any) -> None:
        axes.stairs(values, edges, fill=True, color=ACCENT, alpha=0.75, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max(float(values.max()) * 1.08, 1e-9))
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, min_n_ticks=3))
        draw_grid(axes, short_count)

    mean = float(values @ np.diff(edges)) / float(edges[-1] - edges[0])
    value = f"{formats.number(mean, 4)} a {periods.unit}, mean"
    first, last = formats.day(periods.first_s), formats.day(end_s - 1)
    span = f"{periods.num_units:,} {periods.unit}{'s' if periods.num_units != 1 else ''} (UTC), {first} to {last}"
    each = "" if periods.units_per_period == 1 else f", each step the mean of {periods.units_per_period:,}"
    return _chart("periods", f"Events per {periods.unit}", value, f"{span}{each}.", draw)


def _last_second() -> float:
    """The end of the calendar, beyond which no date can be drawn."""
    return datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()


def _percent(value: float) -> str:
    return np.format_float_positional(float(f"{value:.3g}"), trim="-") + "%"


def _chart(name: str, title: str, value: str, caption: str, draw: Any) -> Chart:
    return Chart(title, value, caption, svg_chart(name, draw, description=f"{title}, {value}. {caption}"))
