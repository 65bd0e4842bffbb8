"""The curves of several runs on one pair of axes, and their quality with its intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genrec.reporting import formats
from genrec.reporting.comparison import Comparison
from genrec.reporting.history import Floats
from genrec.reporting.plots import (
    FONT_SIZE,
    HEIGHT,
    RULE,
    SERIES,
    TICK_STEPS,
    WIDTH,
    Chart,
    Line,
    bucket,
    draw_grid,
    svg_chart,
)
from genrec.reporting.plots import short_count as _short
from genrec.reporting.run_charts import TIME_UNITS
from genrec.reporting.runs_read import ReadRun

MAX_RUNS = len(SERIES)
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.6, 1.6)), (0, (6, 1.6, 1.6, 1.6)))
LEGEND_COLUMNS = 3
MAX_NAME = 22


def runs_charts(runs: Sequence[ReadRun]) -> list[Chart]:
    """Loss and validation quality against events trained on, and against time, of the first eight runs."""
    longest_s = max((run.history.largest("elapsed_s") or 0.0 for run in runs), default=0.0)
    unit_s, unit = next((size, name) for size, name in TIME_UNITS if longest_s >= 2 * size or size == 1)

    def events(run: ReadRun) -> Floats:
        return run.history.events_trained

    def elapsed(run: ReadRun) -> Floats:
        return run.history.train["elapsed_s"] / unit_s

    charts = [
        _loss_chart("loss-events", runs, "events trained on", events, _short),
        _loss_chart(
            "loss-time", runs, "time", elapsed, lambda value: f"{value:g}", f"{unit.capitalize()} of training."
        ),
        _validation_chart(runs, unit_s, unit),
    ]
    return [chart for chart in charts if chart is not None]


def quality_chart(comparison: Comparison) -> Chart:
    """The deciding metric of each run with its 95% interval, in the order of the comparison."""
    metric, runs = comparison.decisive, comparison.runs[:16]
    label_units = min(max(len(run.name) for run in runs), MAX_NAME) * FONT_SIZE * 0.56 + 14
    height = 26 * len(runs) + 44

    def draw(axes: Any) -> None:
        left = label_units / WIDTH
        axes.set_position((left, 28 / height, 0.95 - left, 1 - 34 / height))
        for place, run in enumerate(runs):
            low, high = run.intervals[metric]
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2.2, solid_capstyle="round")
            axes.plot([run.metrics[metric]], [place], "o", color=SERIES[0], markersize=6)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks(range(len(runs)), [_short_name(run.name) for run in runs])
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)

    best = max(runs, key=lambda run: run.metrics[metric])
    title = f"{comparison.role.capitalize()} {formats.metric_name(metric)}"
    value = f"{formats.metric(best.metrics[metric])} highest"
    caption = "Each run with its 95% interval over users; intervals of the differences are narrower, see the table."
    return Chart(
        title, value, caption, svg_chart("quality", draw, description=f"{title}, {value}. {caption}", height=height)
    )


def _loss_chart(
    name: str,
    runs: Sequence[ReadRun],
    over: str,
    positions: Callable[[ReadRun], Floats],
    position_format: Callable[[float], str],
    unit: str = "",
) -> Chart | None:
    lines = [Line(positions(run), run.history.train["loss"], run.name) for run in runs]
    lowest = [float(np.nanmin(run.history.train["loss"])) for run in runs if _drawable(run.history.train["loss"])]
    title, value = f"Training loss over {over}", f"{formats.number(min(lowest))} lowest" if lowest else ""
    caption = " ".join(part for part in ("Nats per target.", unit) if part)
    return _overlay(name, lines, (title, value, caption), position_format)


def _validation_chart(runs: Sequence[ReadRun], unit_s: float, unit: str) -> Chart | None:
    metrics = {run.config.evaluation.metric for run in runs}
    if len(metrics) != 1:
        return None
    metric = metrics.pop()
    lines = [
        Line(
            np.array([found.elapsed_s / unit_s for found in run.history.validations], dtype=float),
            np.array([found.metrics.get(metric, np.nan) for found in run.history.validations], dtype=float),
            run.name,
        )
        for run in runs
    ]
    title = f"Validation {formats.metric_name(metric)} over time"
    return _overlay(
        "validation-time", lines, (title, "", f"{unit.capitalize()} of training."), lambda value: f"{value:g}"
    )


def _overlay(
    name: str, lines: Sequence[Line], said: tuple[str, str, str], position_format: Callable[[float], str]
) -> Chart | None:
    shown = [(place, line) for place, line in enumerate(lines[:MAX_RUNS]) if _drawable(line.values, line.positions)]
    if not shown:
        return None
    title, value, caption = said
    if len(lines) > MAX_RUNS:
        caption += f" The first {MAX_RUNS} of {len(lines)} runs."
    legend_units = 18 * -(-len(shown) // LEGEND_COLUMNS) + 6
    height = HEIGHT + legend_units

    def draw(axes: Any) -> None:
        axes.set_position((0.115, 30 / height, 0.86, 1 - (legend_units + 38) / height))
        for place, line in shown:
            part = bucket(line)
            marker = "o" if len(part.positions) <= 12 else None
            style = {"color": SERIES[place], "ls": STYLES[place % len(STYLES)], "marker": marker}
            axes.plot(part.positions, part.mean, linewidth=1.6, markersize=4, label=_short_name(line.label), **style)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: position_format(position)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, min_n_ticks=3))
        draw_grid(axes, lambda value: f"{value:.3g}")
        corner: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0}
        axes.figure.legend(ncols=LEGEND_COLUMNS, frameon=False, handlelength=2.2, columnspacing=1.4, **corner)

    svg = svg_chart(name, draw, description=f"{title}, {value or 'by run'}. {caption}", height=height)
    return Chart(title, value, caption, svg)


def _drawable(*columns: Floats) -> bool:
    return bool(np.logical_and.reduce([np.isfinite(column) for column in columns]).any())


def _short_name(name: str) -> str:
    """The end of a long name, which tells runs apart sooner than its beginning."""
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]
