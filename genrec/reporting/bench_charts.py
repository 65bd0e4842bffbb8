"""The figures of a benchmark of training: throughput over workers, memory by part, the time of a step by phase."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from genrec.reporting import formats
from genrec.reporting.bars import MAX_BARS, Bar, stacked_bars
from genrec.reporting.bench_cases import PARTS, STEP_PARTS, Case, CaseLabels
from genrec.reporting.bench_scaling import Scaling, scalings
from genrec.reporting.plots import MUTED, SERIES, TICK_STEPS, Chart, draw_grid, short_count, svg_chart

MAX_CURVES = 4
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.6, 1.6)), (0, (6, 1.6, 1.6, 1.6)))
MARKERS = ("o", "s", "^", "D")


def training_charts(name: str, cases: Sequence[Case]) -> list[Chart]:
    """The figures that the cases have the numbers for; ids begin with `name`."""
    charts = [_scaling_chart(name, scalings(cases)), _memory_chart(name, cases), _step_chart(name, cases)]
    return [chart for chart in charts if chart is not None]


def _scaling_chart(name: str, found: Sequence[Scaling]) -> Chart | None:
    if not found:
        return None
    shown = found[:MAX_CURVES]
    workers = sorted({case.workers or 1 for scaling in shown for case in scaling.cases})

    def draw(axes: Any) -> None:
        for place, scaling in enumerate(shown):
            values = [case.values["events_per_s"] for case in scaling.cases]
            positions = np.array([case.workers or 1 for case in scaling.cases], dtype=float)
            medians = np.array([value.median for value in values])
            spans = np.array([[v.median - v.minimum for v in values], [v.maximum - v.median for v in values]])
            color, label = SERIES[place], scaling.label
            axes.errorbar(
                positions, medians, spans, color=color, marker=MARKERS[place], ls=DASHES[place], label=label, capsize=2
            )
            ideal = medians[0] * positions / positions[0]
            axes.plot(positions, ideal, color=MUTED, lw=0.9, ls=(0, (2.5, 2.5)), label="" if place else "ideal")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(workers))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(position)))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, min_n_ticks=3))
        draw_grid(axes, short_count)
        axes.legend(loc="upper left", frameon=False, borderaxespad=0.1, handlelength=2.4, labelspacing=0.25)

    best = shown[0]
    value = f"{formats.percent(best.efficiency)} efficiency on {best.cases[-1].workers} workers"
    caption = "Events per second over workers; uprights are the range of the repetitions. Dashed grey: ideal."
    if len(found) > MAX_CURVES:
        caption += f" The {MAX_CURVES} fastest of {len(found)} settings; the table has all."
    title = "Throughput over workers"
    svg = svg_chart(f"{name}-scaling", draw, description=f"{title}, {value}. {caption}")
    return Chart(title, value, caption, svg)


def _memory_chart(name: str, cases: Sequence[Case]) -> Chart | None:
    full = [case for case in cases if case.mode == "full" and (case.median("peak_bytes") or _predicted(case))]
    if not full:
        return None
    largest = max(max(case.median("peak_bytes") or 0.0, _predicted(case) or 0.0) for case in full)
    unit, unit_name = formats.byte_unit(largest)
    labels = CaseLabels.of(full)
    shown = _longest(full, lambda case: case.median("peak_bytes") or _predicted(case) or 0.0)
    bars = [_memory_bar(case, labels[case], unit) for case in shown]
    title, value = "Peak memory of a worker", f"at most {formats.num_bytes(largest)}"
    caption = f"{unit_name} above the process before its model. " + (
        "Filled: predicted, by part; outline: predicted in all; diamond: measured, the median."
        if any(bar.outline is not None for bar in bars)
        else "Measured, the median."
    )
    svg = stacked_bars(
        f"{name}-memory",
        bars,
        description=f"{title}, {value}. {caption}",
        value_format=lambda value: f"{value:.3g}",
        outline_label="predicted",
        mark_label="measured",
        order=[_spoken(part) for part in PARTS],
    )
    return Chart(title, value, caption + labels.explained + _left_out(full, "need most"), svg)


def _memory_bar(case: Case, label: str, unit: float) -> Bar:
    parts = {part: (case.median(f"predicted_{part}_bytes") or 0.0) / unit for part in PARTS}
    parts = {_spoken(part): value for part, value in parts.items() if value}
    predicted, measured = _predicted(case), case.median("peak_bytes")
    if predicted is None and not parts:
        return Bar(label, {"measured": (measured or 0.0) / unit})
    return Bar(
        label,
        parts,
        outline=None if predicted is None else predicted / unit,
        mark=None if measured is None else measured / unit,
    )


def _predicted(case: Case) -> float | None:
    found = case.median("predicted_bytes")
    if found is not None:
        return found
    return sum(case.median(f"predicted_{part}_bytes") or 0.0 for part in PARTS) or None


def _step_chart(name: str, cases: Sequence[Case]) -> Chart | None:
    timed = [case for case in cases if any(case.median(f"{part}_s") for part in STEP_PARTS)]
    if not timed:
        return None
    labels, bars = CaseLabels.of(timed), []
    for case in _longest(timed, lambda case: case.median("step_s") or 0.0):
        parts = {_spoken(part): 1e3 * (case.median(f"{part}_s") or 0.0) for part in STEP_PARTS}
        step_s = case.median("step_s")
        bars.append(
            Bar(labels[case], {k: v for k, v in parts.items() if v}, mark=None if step_s is None else 1e3 * step_s)
        )
    title = "Where the time of a step goes"
    longest = max(timed, key=lambda case: case.median("step_s") or 0.0)
    value = f"longest step {formats.seconds(longest.median('step_s'))}"
    caption = "Milliseconds, medians of each phase; diamond: the whole step, timed by itself."
    svg = stacked_bars(
        f"{name}-step",
        bars,
        description=f"{title}, {value}. {caption}",
        value_format=lambda value: f"{value:,.4g}",
        mark_label="whole step",
        order=[_spoken(part) for part in STEP_PARTS],
    )
    return Chart(title, value, caption + labels.explained + _left_out(timed, "take longest"), svg)


def _spoken(part: str) -> str:
    return part.replace("_", " ")


def _longest(cases: Sequence[Case], length: Callable[[Case], float]) -> list[Case]:
    """As many cases as a figure has room for, those with the longest bars, in the order that they have."""
    kept = sorted(range(len(cases)), key=lambda place: -length(cases[place]))[:MAX_BARS]
    return [cases[place] for place in sorted(kept)]


def _left_out(cases: Sequence[Case], what: str) -> str:
    return f" The {MAX_BARS} of {len(cases)} cases that {what}; the table has all." if len(cases) > MAX_BARS else ""
