"""Bars of stacked parts, each beside its name: memory by part, the time of a step by phase."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genrec.reporting.plots import FONT_SIZE, GROUND, INK, RULE, SERIES, TICK_STEPS, WIDTH, svg_chart

BAR_UNITS = 24  # of the viewBox, for a bar and the space around it
LEGEND_UNITS = 18  # for a line of the legend
MAX_BARS = 16
MAX_LABEL = 26
LEGEND_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its parts in the order of the legend, the total that was foreseen, and the total that was measured."""

    label: str
    parts: dict[str, float]
    outline: float | None = None
    mark: float | None = None


def stacked_bars(
    name: str,
    bars: Sequence[Bar],
    *,
    description: str,
    value_format: Callable[[float], str],
    outline_label: str = "",
    mark_label: str = "",
    order: Sequence[str] = (),
) -> str:
    """An `<svg>` element with a bar a line; parts of one name have one colour, which the legend on top explains.

    `order` are all parts that there may be: figures with the same `order` then have the same colours.
    """
    shown = bars[:MAX_BARS]
    found = {part for bar in shown for part in bar.parts}
    known = list(dict.fromkeys([*order, *(part for bar in shown for part in bar.parts)]))
    colors = {part: SERIES[place % len(SERIES)] for place, part in enumerate(known)}
    names = [part for part in known if part in found]
    handles: list[Any] = [Patch(facecolor=colors[part], edgecolor="none", label=part) for part in names]
    if any(bar.outline is not None for bar in shown):
        handles.append(Patch(facecolor="none", edgecolor=INK, linewidth=1.0, label=outline_label))
    if any(bar.mark is not None for bar in shown):
        handles.append(Line2D([], [], color=INK, marker="D", markersize=5, linewidth=0, label=mark_label))
    legend_units = LEGEND_UNITS * -(-len(handles) // LEGEND_COLUMNS) + 8
    height = BAR_UNITS * len(shown) + legend_units + 40
    label_units = min(max(len(_short(bar.label)) for bar in shown), MAX_LABEL) * FONT_SIZE * 0.56 + 14

    def draw(axes: Any) -> None:
        left = label_units / WIDTH
        axes.set_position((left, 28 / height, 0.97 - left, BAR_UNITS * len(shown) / height))
        for place, bar in enumerate(shown):
            _draw_bar(axes, place, bar, colors)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_yticks(range(len(shown)), [_short(bar.label) for bar in shown])
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: value_format(value)))
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=LEGEND_COLUMNS,
            frameon=False,
            borderaxespad=0,
            handlelength=1.0,
            handleheight=0.8,
            columnspacing=1.4,
        )

    return svg_chart(name, draw, description=description, height=height)


def _draw_bar(axes: Any, place: int, bar: Bar, colors: dict[str, str]) -> None:
    start = 0.0
    for part, value in bar.parts.items():
        axes.barh(place, value, left=start, height=0.62, color=colors[part], edgecolor=GROUND, linewidth=0.8)
        start += value
    if bar.outline is not None:
        axes.barh(place, bar.outline, height=0.74, facecolor="none", edgecolor=INK, linewidth=1.0)
    if bar.mark is not None:
        axes.plot([bar.mark], [place], "D", color=INK, markersize=5, markeredgecolor=GROUND, markeredgewidth=0.8)


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
