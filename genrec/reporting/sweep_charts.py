"""The charts of a sweep's page: learning curves, importances, settings against the metric, the front, the power law."""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from genrec.reporting import formats
from genrec.reporting.plots import (
    ACCENT,
    INK,
    MUTED,
    SECOND,
    Chart,
    Line,
    draw_grid,
    short_count,
    svg_chart,
)
from genrec.reporting.sweep_record import SweepRecord, settings_of
from genrec.reporting.sweep_scaling import NAMES, PowerLaw, fit_power_law

MAX_CURVES = 40
MAX_SETTINGS = 4
MAX_PAIRED = 3  # settings whose pairs are drawn
LOG_FROM = 20.0  # a positive setting whose largest value is this many times its smallest is drawn on a log scale


def sweep_charts(record: SweepRecord) -> list[Chart]:
    """The charts for which there is something to show, in the order of the page."""
    if not record.ranked:
        return []
    keys = _by_importance(record)
    charts = [_curves(record), _importances(record)]
    charts += [_setting(record, key) for key in keys[:MAX_SETTINGS]]
    charts += [_interaction(record, *pair) for pair in combinations(keys[:MAX_PAIRED], 2)]
    charts += [_front(record), *_scaling(record)]
    return [chart for chart in charts if chart is not None]


def pareto(points: Sequence[tuple[float, ...]], signs: list[int]) -> list[int]:
    """Places of the points that no other one beats in every coordinate; `signs` are 1 where more is better."""
    values = np.array(points) * np.array(signs)
    return [
        place
        for place, value in enumerate(values)
        if not ((values >= value).all(axis=1) & (values > value).any(axis=1)).any()
    ]


def _curves(record: SweepRecord) -> Chart | None:
    best, *others = record.ranked
    shown = others[: MAX_CURVES - 1]
    lines = [_curve(record, trial, MUTED) for trial in reversed(shown)] + [_curve(record, best, ACCENT)]
    drawn = [line for line in lines if len(line.values) > 1]  # one validation is a point of the charts below
    if not drawn:
        return None
    value = formats.number(best["best"][record.metric])
    left_out = len(others) - len(shown)
    caption = "Over epochs, a line for each trial, the best in colour."
    caption += f" {left_out} more are left out." if left_out else ""

    def draw(axes: Any) -> None:
        for line in drawn:
            strong = line.color == ACCENT
            axes.plot(line.positions, line.values, color=line.color, alpha=1 if strong else 0.3, linewidth=1 + strong)
        _finish(axes, {}, False)

    svg = svg_chart("curves", draw, description=f"Learning curves of {len(drawn)} trials; the best reaches {value}.")
    return Chart(f"{_title(record.metric)} while training", f"{value} best", caption, svg)


def _curve(record: SweepRecord, trial: dict[str, Any], color: str) -> Line:
    history = [entry for entry in trial["progress"]["history"] if record.metric in entry]
    epochs = np.array([entry["epoch"] for entry in history], dtype=float)
    return Line(epochs, np.array([entry[record.metric] for entry in history], dtype=float), color=color)


def _by_importance(record: SweepRecord) -> list[str]:
    varied = [key for key in record.keys if len({str(settings_of(t).get(key)) for t in record.ranked}) > 1]
    return sorted(varied, key=lambda key: -record.values["importances"].get(key, 0.0))


def _importances(record: SweepRecord) -> Chart | None:
    found = sorted(record.values["importances"].items(), key=lambda entry: entry[1])
    if not found:
        return None

    def draw(axes: Any) -> None:
        places = range(len(found))
        axes.barh(list(places), [value for _, value in found], color=ACCENT, height=0.62)
        axes.set_yticks([])
        axes.set_xlim(0, 1.7)  # room for the names
        axes.set_xticks([0, 0.5, 1])
        for place, (key, value) in zip(places, found, strict=True):
            axes.annotate(f"{key}  {value:.2f}", (value + 0.02, place), va="center", color=INK)

    top, share = found[-1]
    caption = "Share of each setting in what decides whether a trial is among the best (PED-ANOVA); they sum to 1."
    svg = svg_chart("importances", draw, description=f"Importance of {len(found)} settings; {top} has {share:.2f}.")
    return Chart("What decides", f"{top} {share:.2f}", caption, svg)


def _setting(record: SweepRecord, key: str) -> Chart | None:
    points = [(settings_of(t)[key], t["best"][record.metric]) for t in record.ranked if key in settings_of(t)]
    if not points:
        return None
    places, labels, log = _positions([value for value, _ in points])
    values = [value for _, value in points]

    def draw(axes: Any) -> None:
        axes.plot(places, values, "o", color=ACCENT, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.plot(places[0], values[0], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
        _finish(axes, labels, log)

    best = formats.plain(points[0][0])
    svg = svg_chart(_name("setting", key), draw, description=f"{record.metric} against {key}; best at {best}.")
    return Chart(key, f"{best} best", f"{_title(record.metric)} of every trial at its best validation.", svg)


def _interaction(record: SweepRecord, first: str, second: str) -> Chart | None:
    trials = [t for t in record.ranked if first in settings_of(t) and second in settings_of(t)]
    if len(trials) < 4:
        return None
    across, labels, log = _positions([settings_of(t)[first] for t in trials])
    up, up_labels, up_log = _positions([settings_of(t)[second] for t in trials])
    # Rank, not value: one bad trial must not make all the others look alike.
    sizes = np.linspace(13, 3, len(trials))

    def draw(axes: Any) -> None:
        for place, (x, y) in enumerate(zip(across, up, strict=True)):
            color = ACCENT if place < max(1, len(trials) // 4) else MUTED
            axes.plot(x, y, "o", color=color, markersize=sizes[place], alpha=0.7, markeredgewidth=0)
        _finish(axes, labels, log)
        if up_labels:
            axes.set_yticks(list(up_labels), list(up_labels.values()))
        if up_log:
            axes.set_yscale("log")
            axes.minorticks_off()

    caption = f"{second} (up) against {first} (across). Larger is better; the best quarter is in colour."
    svg = svg_chart(
        _name(_name("interaction", first), second), draw, description=f"Which pairs of {first} and {second} are good."
    )
    return Chart(f"{first} and {second}", f"{len(trials)} trials", caption, svg)


def _front(record: SweepRecord) -> Chart | None:
    metrics = record.values["metrics"]
    other = metrics[1] if len(metrics) > 1 else "num_parameters"
    sign = (1 if record.values["modes"][1] == "max" else -1) if len(metrics) > 1 else -1
    trials = [t for t in record.ranked if t["best"].get(other) is not None]
    points = [(t["best"][other], t["best"][record.metric]) for t in trials]
    if len({x for x, _ in points}) < 2:
        return None
    front = sorted(pareto(points, [sign, record.sign]), key=lambda place: points[place][0])
    on_line = [points[place] for place in front]

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), "o", color=MUTED, markersize=5, alpha=0.7, markeredgewidth=0)
        axes.plot(*zip(*on_line, strict=True), "-o", color=ACCENT, markersize=6, linewidth=1.4)
        _finish(axes, {}, False)

    names = ", ".join(f"{trials[place]['number']:04d}" for place in front)
    caption = f"{_title(record.metric)} against {_title(other)}; no trial beats one on the line in both: {names}."
    svg = svg_chart("front", draw, description=f"Pareto front of {len(front)} trials.")
    return Chart("Pareto front", f"{len(front)} of {len(points)} trials", caption, svg)


def power_law(record: SweepRecord) -> tuple[PowerLaw, list[dict[str, float]]] | None:
    """The power law of a sweep that optimises the loss, and its points; None for other sweeps, or without one."""
    if record.metric != "loss":
        return None
    points = [
        {"parameters": t["num_parameters"], "tokens": t["progress"]["events"], "loss": t["best"]["loss"]}
        for t in record.ranked
        if t["state"] == "finished" and t["num_parameters"] and t["progress"]["events"]
    ]
    law = fit_power_law(*([point[name] for point in points] for name in (*NAMES, "loss")))
    return None if law is None else (law, points)


def _scaling(record: SweepRecord) -> list[Chart | None]:
    found = power_law(record)
    if found is None:
        return []
    law, points = found
    return [_law_over(law, points, name) for name in law.exponents]


def _law_over(law: PowerLaw, points: list[dict[str, float]], name: str) -> Chart:
    exponent, low, high = law.exponents[name]
    middle = {other: float(np.exp(np.mean([np.log(p[other]) for p in points]))) for other in law.exponents}
    values = [point[name] for point in points]
    positions = np.geomspace(min(values), max(values), 40)
    # Every point is moved along the law to the middle of the other quantity, so that one line fits them all.
    moved = [point["loss"] * law.loss({**middle, name: point[name]}) / law.loss(point) for point in points]

    bands = np.array([law.band({**middle, name: x}) for x in positions])

    def draw(axes: Any) -> None:
        axes.fill_between(positions, bands[:, 0], bands[:, 1], color=SECOND, alpha=0.18, linewidth=0)
        axes.plot(positions, [law.loss({**middle, name: x}) for x in positions], color=SECOND, linewidth=1.6)
        axes.plot(values, moved, "o", color=ACCENT, markersize=5, markeredgewidth=0)
        _finish(axes, {}, log=True)
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = np.geomspace(min(moved), max(moved), 4)  # losses are seldom a power of ten apart
        axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])

    caption = (
        f"Training loss over {name}, both axes logarithmic. Exponent {exponent:.3f}, 95% interval {low:.3f} to "
        f"{high:.3f}, R² {law.r_squared:.3f}, {law.num_points} trials. The band is the line's 95% interval."
    )
    svg = svg_chart(f"law-{name}", draw, description=caption)
    return Chart(f"Loss and {name}", f"exponent {exponent:.3f}", caption, svg)


def _positions(values: list[Any]) -> tuple[list[float], dict[float, str], bool]:
    """Places on an axis, the labels of those places where values are names, and whether the axis is logarithmic."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        return numbers, {}, min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FROM
    names = sorted({formats.plain(value) for value in values})
    # A dollar would begin a formula, and XML takes no control characters.
    shown = [re.sub(r"[\x00-\x1f\x7f]", " ", name).replace("$", r"\$") for name in names]
    return [float(names.index(formats.plain(value))) for value in values], dict(enumerate(shown)), False


def _finish(axes: Any, labels: dict[float, str], log: bool) -> None:
    draw_grid(axes, lambda number: short_count(number) if abs(number) >= 1_000 else f"{number:.4g}")
    if labels:
        axes.set_xticks(list(labels), list(labels.values()))
        axes.set_xlim(min(labels) - 0.5, max(labels) + 0.5)
    elif log:
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value) if abs(value) >= 1 else f"{value:g}")


def _title(metric: str) -> str:
    return formats.metric_name(metric) if "@" in metric else metric.replace("_", " ").capitalize()


def _name(kind: str, key: str) -> str:
    return f"{kind}-{key.replace('.', '-').replace('_', '-')}"
