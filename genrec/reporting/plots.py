"""Line charts as inline SVG that take their colours and font from the page, in light and in dark.

matplotlib draws with stand-in colours; `_themed` replaces each by a CSS variable of the page (reporting/page.css),
renames the ids so that several charts fit in one document, and drops everything that points outside the page.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genrec.reporting.history import Floats

WIDTH, HEIGHT = 440, 236  # viewBox units; 1 unit is about 0.8 px on a phone and 1.05 px on a desktop
FONT_SIZE = 12
MAX_POINTS = 160  # a longer curve becomes this many buckets, each its mean and its range: 2 units a point

TICK_STEPS = (1, 2, 2.5, 5, 10)

ACCENT, SECOND, THIRD, INK, MUTED, RULE, WARNING, GROUND = (f"#a1b2c{digit}" for digit in range(1, 9))
# Eight colours that people with any kind of colour vision tell apart, for parts of a bar and curves of many runs.
SERIES = tuple(f"#a1b2d{digit}" for digit in range(1, 9))
THEME = {
    ACCENT: "var(--accent)",
    SECOND: "var(--line-2)",
    THIRD: "var(--line-3)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    WARNING: "var(--warning)",
    GROUND: "var(--ground)",
    **{color: f"var(--series-{digit})" for digit, color in enumerate(SERIES, start=1)},
}

_RC = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure of a page: `value` is the number to remember, `caption` says what the axes measure."""

    title: str
    value: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: `values` [num_points] at `positions` [num_points]; points that are not finite are left out."""

    positions: Floats
    values: Floats
    label: str = ""
    color: str = ACCENT
    dashes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Marks:
    """What a chart shows besides its curves, by position: restarts, the best point, and where a value is missing."""

    restarts: Sequence[float] = ()
    best: tuple[float, float] | None = None
    not_finite: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Buckets:
    """A curve short enough to draw: per bucket the mean position and the mean, smallest and largest value."""

    positions: Floats
    mean: Floats
    low: Floats
    high: Floats
    num_per_bucket: int


def bucket(line: Line, max_points: int = MAX_POINTS) -> Buckets:
    """The finite points of a curve in at most `max_points` buckets of equally many neighbours."""
    finite = np.isfinite(line.values) & np.isfinite(line.positions)
    positions, values = line.positions[finite], line.values[finite]
    if len(values) <= max_points:
        return Buckets(positions, values, values, values, 1)
    num_per_bucket = -(-len(values) // max_points)
    starts = np.arange(0, len(values), num_per_bucket)
    sizes = np.diff(np.append(starts, len(values)))
    return Buckets(
        positions=np.add.reduceat(positions, starts) / sizes,
        mean=np.add.reduceat(values, starts) / sizes,
        low=np.minimum.reduceat(values, starts),
        high=np.maximum.reduceat(values, starts),
        num_per_bucket=num_per_bucket,
    )


def line_chart(
    name: str,
    lines: Sequence[Line],
    *,
    description: str,
    value_format: Callable[[float], str],
    from_zero: bool = True,
    log_scale: bool = False,
    marks: Marks | None = None,
) -> str:
    """An `<svg>` element with the curves; its accessible name is `description`, its ids start with `name`."""
    marks = marks or Marks()
    labelled = any(line.label for line in lines)

    def draw(axes: Any) -> None:
        buckets = [_draw(axes, line) for line in lines]
        if log_scale:
            axes.set_yscale("log")
        elif from_zero:
            highest = max(float(part.high.max()) for part in buckets)
            axes.set_ylim(0, highest * 1.08 if highest > 0 else 1)
        _draw_marks(axes, marks)
        _finish_axes(axes, value_format, log_scale, _range(buckets, marks))
        if labelled:
            _label_ends(axes, lines, buckets)

    return svg_chart(name, draw, description=description, width=0.715 if labelled else 0.86)


def svg_chart(
    name: str, draw: Callable[[Any], None], *, description: str, width: float = 0.86, height: float = HEIGHT
) -> str:
    """An `<svg>` element with what `draw` puts on matplotlib axes, in the look of the page.

    `width` is the axes' part of the whole, `height` the chart's in viewBox units; colours are those of this module
    (`ACCENT`, ...).
    """
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        below, above = 0.13 * HEIGHT / height, 0.06 * HEIGHT / height
        draw(figure.add_axes((0.115, below, width, 1 - below - above)))
        text = io.StringIO()
        with warnings.catch_warnings():  # a single point has no range; matplotlib widens it and says so
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _themed(text.getvalue(), name, description, height)


def draw_grid(axes: Any, value_format: Callable[[float], str]) -> None:
    """Grid lines across the axes and the values beside them; no minor ticks."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: value_format(value)))
    axes.minorticks_off()
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw(axes: Any, line: Line) -> Buckets:
    part = bucket(line)
    if part.num_per_bucket > 1:
        axes.fill_between(part.positions, part.low, part.high, color=line.color, alpha=0.16, linewidth=0)
    axes.plot(
        part.positions,
        part.mean,
        color=line.color,
        linewidth=1.7,
        dashes=line.dashes or (None, None),
        marker="o" if len(part.positions) <= 12 else None,
        markersize=5,
        markeredgewidth=0,
        solid_capstyle="round",
    )
    return part


def _draw_marks(axes: Any, marks: Marks) -> None:
    across = axes.get_xaxis_transform()
    if marks.restarts:  # one path for all of them: a run that is preempted hourly has hundreds
        positions = np.repeat(np.array(marks.restarts, dtype=float), 3)
        heights = np.tile([0.0, 1.0, np.nan], len(marks.restarts))
        axes.plot(
            positions, heights, color=MUTED, alpha=0.6, linewidth=0.9, dashes=(2.5, 2.5), transform=across, scaley=False
        )
    if len(marks.not_finite):
        positions = np.array(marks.not_finite, dtype=float)[-MAX_POINTS:]
        heights = np.full(len(positions), 0.03)
        axes.plot(positions, heights, "x", color=WARNING, markersize=5, transform=across, scaley=False, zorder=4)
    if marks.best is not None:
        axes.plot(*marks.best, "o", markersize=10, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.3)


def _range(buckets: Sequence[Buckets], marks: Marks) -> tuple[float, float]:
    shown = np.concatenate(
        [*(part.positions for part in buckets), np.array([*marks.restarts, *marks.not_finite], float)]
    )
    first, last = float(shown.min()), float(shown.max())
    space = 0.02 * (last - first) or 1.0
    return first - space, last + space


def _finish_axes(
    axes: Any, value_format: Callable[[float], str], log_scale: bool, position_range: tuple[float, float]
) -> None:
    axes.set_xlim(*position_range)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, integer=position_range[1] > 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(position)))
    if not log_scale:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, min_n_ticks=3))
    draw_grid(axes, value_format)


def short_count(value: float) -> str:
    """A count beside an axis: `2,000`, `20k`, `1.5M`."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,g}"


def _label_ends(axes: Any, lines: Sequence[Line], buckets: Sequence[Buckets]) -> None:
    """Names each curve at its right end, moved apart where the ends are close."""
    low, high = axes.get_ylim()
    height = (FONT_SIZE + 3) / (HEIGHT * 0.81)  # of a label, as a fraction of the axes
    wanted = sorted(((float(part.mean[-1]) - low) / (high - low), index) for index, part in enumerate(buckets))
    previous = -1.0
    for fraction, index in wanted:
        place = max(fraction, previous + height)
        previous = place
        axes.annotate(
            lines[index].label,
            (1.02, place),
            xycoords="axes fraction",
            color=lines[index].color,
            va="center",
            annotation_clip=False,
        )


def _themed(svg: str, name: str, description: str, height: float) -> str:
    """matplotlib's SVG as an element for an HTML page."""
    root = ET.fromstring(svg[svg.index("<svg") :])
    referenced = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
    kept = {first or second for first, second in referenced}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        identifier = attributes.pop("id", "")
        if identifier in kept:
            attributes["id"] = f"{name}-{identifier}"
        if attributes.get("href", "").startswith("#"):
            attributes["href"] = f"#{name}-{attributes['href'][1:]}"
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
        if "style" in attributes:
            attributes["style"] = _themed_style(attributes["style"])
        if "d" in attributes:
            attributes["d"] = _short_path(attributes["d"])
        element.attrib.clear()
        element.attrib.update(attributes)
        element.tail = None
        element.text = element.text if element.tag in ("text", "tspan") else None
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": f"0 0 {WIDTH} {height:g}", "class": "plot", "role": "img", "aria-label": description}
    )
    return ET.tostring(root, encoding="unicode")


def _themed_style(style: str) -> str:
    style = re.sub(r"font-family:[^;]+;?\s*", "", style)
    return re.sub(r"#[0-9a-f]{6}", lambda match: THEME.get(match[0], "var(--ink)"), style)


def _short_path(path: str) -> str:
    """A path with two decimals: a hundredth of a unit is far finer than a pixel."""
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}", " ".join(path.split()))
