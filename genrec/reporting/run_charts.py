"""Which curves a run's page shows, and the words around each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from genrec.reporting import formats
from genrec.reporting.history import Floats, History
from genrec.reporting.plots import ACCENT, MAX_POINTS, SECOND, THIRD, Chart, Line, Marks, line_chart

NEAR_BEST = 0.95
TIME_UNITS = ((3_600, "hours"), (60, "minutes"), (1, "seconds"))
LOG_SCALE_FROM = 100.0  # a gradient norm whose peak is this many times its median is drawn on a log scale


def run_charts(history: History, metric: str) -> list[Chart]:
    """The charts that have a finite value, in the order of the page; `metric` is what chose the best step."""
    charts = [
        _loss(history),
        _validation(history, metric),
        _quality_over_time(history, metric),
        _throughput(history),
        _data_wait(history),
        _memory(history),
        _gradient_norm(history),
        _learning_rate(history),
        *_losses(history),
    ]
    return [chart for chart in charts if chart is not None]


def _finite_line(history: History, column: str, scale: float = 1.0) -> Line | None:
    values = history.train[column] / scale
    return Line(history.train["step"], values) if np.isfinite(values).any() else None


def _chart(
    history: History,
    name: str,
    line: Line,
    *,
    title: str,
    value: str,
    caption: str,
    axis_format: Callable[[float], str],
    **options: Any,
) -> Chart:
    """A chart of one training column."""
    bad = line.positions[~np.isfinite(line.values)] if name == "loss" else np.array([])
    svg = line_chart(
        name,
        [line],
        description=f"{title} over the optimizer step, {value}. {caption}",
        value_format=axis_format,
        marks=Marks(restarts=history.restart_steps, not_finite=bad.tolist()),
        **options,
    )
    return Chart(title, value, caption, svg)


def lines_per_point(history: History) -> int:
    """How many training lines a point of a curve stands for; 1 draws each."""
    return max(1, -(-history.num_lines // MAX_POINTS))


def _loss(history: History) -> Chart | None:
    line = _finite_line(history, "loss")
    if line is None:
        return None
    lowest = int(np.nanargmin(np.where(np.isfinite(line.values), line.values, np.nan)))
    return _chart(
        history,
        "loss",
        line,
        title="Training loss",
        value=f"{formats.number(history.last('loss'))} last",
        caption=f"Nats per target. Lowest {formats.number(float(line.values[lowest]))} "
        f"at step {formats.count(float(line.positions[lowest]))}.",
        axis_format=lambda value: f"{value:.4g}",
        from_zero=False,
    )


def _losses(history: History) -> list[Chart | None]:
    """The loss over the events trained on and over time, which other batch sizes and other hardware compare by."""
    unit_s, unit = _time_unit(history.largest("elapsed_s") or 0.0)
    events = "Events that the run has trained on: epochs times the events of one."
    return [
        _loss_over(history, "loss-events", "events trained on", history.events_trained, events),
        _loss_over(
            history,
            "loss-time",
            "training time",
            history.train["elapsed_s"] / unit_s,
            f"{unit.capitalize()} of training over all starts.",
        ),
    ]


def _loss_over(history: History, name: str, over: str, positions: Floats, caption: str) -> Chart | None:
    """A chart of the loss over another axis than the step; None with fewer than two points."""
    known = np.isfinite(positions) & np.isfinite(history.train["loss"])
    if known.sum() < 2:
        return None
    values = history.train["loss"][known]
    title, value = f"Loss over {over}", f"{formats.number(float(values[-1]))} last"
    svg = line_chart(
        name,
        [Line(positions[known], values)],
        description=f"{title}, {value}. {caption}",
        value_format=lambda value: f"{value:.4g}",
        from_zero=False,
    )
    return Chart(title, value, f"Nats per target. {caption}", svg)


def _time_unit(longest_s: float) -> tuple[float, str]:
    """The unit of time that suits a duration: its seconds, and its name."""
    return next((size, name) for size, name in TIME_UNITS if longest_s >= 2 * size or size == 1)


def _validation(history: History, metric: str) -> Chart | None:
    cut_off = metric.partition("@")[2]
    names = [metric, *(f"{family}@{cut_off}" for family in ("hr", "ndcg", "mrr") if f"{family}@{cut_off}" != metric)]
    steps: Floats = np.array([validation.step for validation in history.validations], dtype=float)
    styles: list[tuple[str, tuple[float, ...]]] = [(ACCENT, ()), (SECOND, (5, 1.6)), (THIRD, (1.6, 1.6))]
    lines = []
    for name, (color, dashes) in zip(names, styles, strict=True):
        values = np.array([validation.metrics.get(name, np.nan) for validation in history.validations])
        if np.isfinite(values).any():
            lines.append(Line(steps, values, formats.metric_name(name), color, dashes))
    if not lines or lines[0].label != formats.metric_name(metric):
        return None
    best = history.best_validation(metric)
    value, found = "", None
    if best is not None and np.isfinite(best.metrics.get(metric, np.nan)):
        found = (float(best.step), best.metrics[metric])
        value = f"{formats.metric(found[1])} best"
    where = "" if best is None else f" The ring marks the best, at step {best.step:,} (epoch {best.epoch:.4g})."
    caption = f"{formats.metric_name(metric)} chooses the model; 1 is perfect.{where}"
    svg = line_chart(
        "validation",
        lines,
        description=f"Validation metrics over the optimizer step, {formats.metric_name(metric)} {value}. {caption}",
        value_format=lambda value: f"{value:.3g}",
        marks=Marks(restarts=history.restart_steps, best=found),
    )
    return Chart(f"Validation {formats.metric_name(metric)}", value, caption, svg)


def _quality_over_time(history: History, metric: str) -> Chart | None:
    elapsed_s = np.array([validation.elapsed_s for validation in history.validations])
    values = np.array([validation.metrics.get(metric, np.nan) for validation in history.validations])
    known = np.isfinite(elapsed_s) & np.isfinite(values)
    if not known.any():
        return None
    total_s = float(elapsed_s[known].max())
    unit_s, unit = _time_unit(total_s)
    best = int(np.argmax(np.where(known, values, -np.inf)))
    near = float(elapsed_s[np.argmax(known & (values >= NEAR_BEST * values[best]))])
    title = f"{formats.metric_name(metric)} over time"
    value = f"95% in {formats.seconds(near)}"
    caption = f"{unit.capitalize()} of training over all starts. {value} means: 95% of the best, which the ring marks."
    svg = line_chart(
        "quality-over-time",
        [Line(elapsed_s / unit_s, values)],
        description=f"{title}, {value}. {caption}",
        value_format=lambda value: f"{value:.3g}",
        marks=Marks(best=(float(elapsed_s[best]) / unit_s, float(values[best]))),
    )
    return Chart(title, value, caption, svg)


def _throughput(history: History) -> Chart | None:
    line = _finite_line(history, "events_per_s")
    if line is None:
        return None
    return _chart(
        history,
        "throughput",
        line,
        title="Throughput",
        value=f"{formats.count(history.median('events_per_s'))} median",
        caption="Events per second over all workers; padding does not count.",
        axis_format=_thousands,
    )


def _thousands(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e4 else f"{value:,.0f}"


def _data_wait(history: History) -> Chart | None:
    line = _finite_line(history, "data_wait_fraction", scale=0.01)
    if line is None:
        return None
    return _chart(
        history,
        "data-wait",
        line,
        title="Data wait",
        value=f"{formats.percent(history.median('data_wait_fraction'))} median",
        caption="Percent of the step time that a worker waits for its next micro-batch.",
        axis_format=lambda value: f"{value:.3g}%",
    )


def _memory(history: History) -> Chart | None:
    largest = history.largest("memory_bytes")
    if not largest:
        return None
    unit, name = formats.byte_unit(largest)
    line = _finite_line(history, "memory_bytes", scale=unit)
    if line is None:
        return None
    return _chart(
        history,
        "memory",
        line,
        title="Peak memory",
        value=f"{formats.num_bytes(largest)}",
        caption=f"{name} so far, on the first worker: allocated on its GPU, else resident.",
        axis_format=lambda value: f"{value:.4g}",
    )


def _gradient_norm(history: History) -> Chart | None:
    line = _finite_line(history, "gradient_norm")
    median, largest = history.median("gradient_norm"), history.largest("gradient_norm")
    if line is None or median is None or largest is None:
        return None
    positive = bool((line.values[np.isfinite(line.values)] > 0).all())
    return _chart(
        history,
        "gradient-norm",
        line,
        title="Gradient norm",
        value=f"{formats.number(median, 3)} median",
        caption=f"Length of the gradient before clipping. Peak {formats.number(largest, 3)}.",
        axis_format=lambda value: f"{value:.3g}",
        log_scale=positive and largest > LOG_SCALE_FROM * median,
    )


def _learning_rate(history: History) -> Chart | None:
    line = _finite_line(history, "lr")
    if line is None:
        return None
    return _chart(
        history,
        "learning-rate",
        line,
        title="Learning rate",
        value=f"{formats.number(history.last('lr'), 3)} last",
        caption=f"Per step. Peak {formats.number(history.largest('lr'), 3)}.",
        axis_format=lambda value: f"{value:.3g}",
    )
