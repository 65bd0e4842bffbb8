"""What a benchmark of training says, in sentences and key figures, all computed from its cases."""

from collections.abc import Sequence

from genrec.bench.result import Summary
from genrec.reporting import formats
from genrec.reporting.bench_cases import Case
from genrec.reporting.bench_charts import scalings
from genrec.reporting.tables import Row

STAGE = "engine.zero_stage"


def training_summary(cases: Sequence[Case]) -> list[str]:
    """The sentences; one that the cases have no numbers for is left out, failures are always named."""
    full = [case for case in cases if case.mode == "full"]
    found = [
        _fastest_sentence(full),
        _scaling_sentence(full),
        _zero_sentence(full),
        _mode_sentence(cases),
        _error_sentence(full, "memory", "predicted_bytes", "peak_bytes"),
        _error_sentence(full, "step time", "predicted_step_s", "step_s"),
        _failed_sentence(cases),
    ]
    return [sentence for sentence in found if sentence]


def training_figures(cases: Sequence[Case]) -> list[Row]:
    """The key figures of the page's head."""
    full = [case for case in cases if case.mode == "full"]
    figures = []
    if (best := _fastest(full)) is not None:
        figures.append(Row("Best throughput", formats.count(best.median("events_per_s")), "events per second", True))
    if found := scalings(full):
        hint = f"{found[0].cases[0].workers} to {found[0].cases[-1].workers} workers"
        figures.append(Row("Scaling efficiency", formats.percent(found[0].efficiency), hint))
    if (saved := _zero_pair(full)) is not None:
        low, high = saved
        part = 1 - (high.median("peak_bytes") or 0.0) / (low.median("peak_bytes") or 1.0)
        figures.append(Row("Memory saved", formats.percent(part), f"ZeRO-{high.axes[STAGE]} to ZeRO-{low.axes[STAGE]}"))
    if errors := _errors(full, "predicted_bytes", "peak_bytes"):
        figures.append(Row("Memory prediction", _median_error(errors), "median error"))
    num_ok = sum(case.is_ok for case in cases)
    figures.append(Row("Cases", f"{num_ok} of {len(cases)}", "went well"))
    return figures


def readings(found: Summary | None) -> str:
    """`3 readings within 4%`, or `one reading`."""
    if found is None or found.count < 2:
        return "one reading"
    return f"{found.count} readings within {formats.percent(found.spread)}"


def _fastest(cases: Sequence[Case]) -> Case | None:
    timed = [case for case in cases if case.median("events_per_s") is not None]
    return max(timed, key=lambda case: case.median("events_per_s") or 0.0, default=None)


def _fastest_sentence(cases: Sequence[Case]) -> str:
    best = _fastest(cases)
    if best is None:
        return ""
    found = best.values["events_per_s"]
    mfu = best.median("mfu")
    utilisation = "" if mfu is None else f", MFU {formats.percent(mfu)} {best.mfu_of}".rstrip()
    return f"Fastest: `{best.name}` with {formats.count(found.median)} events/s ({readings(found)}){utilisation}."


def _scaling_sentence(cases: Sequence[Case]) -> str:
    found = scalings(cases)
    if not found:
        return ""
    best = found[0]
    text = (
        f"{best.cases[-1].workers} workers have {best.speedup:.3g} times the throughput of {best.cases[0].workers} "
        f"({best.label}): {formats.percent(best.efficiency)} scaling efficiency"
    )
    if len(found) > 1:
        efficiencies = [scaling.efficiency for scaling in found]
        low, high = formats.percent(min(efficiencies)), formats.percent(max(efficiencies))
        text += f"; {low} to {high} over {len(found)} settings"
    return text + "."


def _zero_pair(cases: Sequence[Case]) -> tuple[Case, Case] | None:
    """Two cases that differ in the ZeRO stage alone, and of which the second saves most memory."""
    pairs = []
    for low in cases:
        for high in cases:
            others = [{k: v for k, v in case.axes.items() if k != STAGE} for case in (low, high)]
            stages = [case.axes.get(STAGE) for case in (low, high)]
            if others[0] != others[1] or low.workers != high.workers or low.median("peak_bytes") is None:
                continue
            if (
                all(isinstance(stage, int) for stage in stages)
                and stages[0] == 0
                and stages[1]
                and high.median("peak_bytes")
            ):
                pairs.append((low, high))
    return min(
        pairs,
        key=lambda pair: (pair[1].median("peak_bytes") or 0.0) / (pair[0].median("peak_bytes") or 1.0),
        default=None,
    )


def _zero_sentence(cases: Sequence[Case]) -> str:
    pair = _zero_pair(cases)
    if pair is None:
        return ""
    low, high = (case.median("peak_bytes") or 0.0 for case in pair)
    saved = 1 - high / low if low else 0.0
    word = "less" if saved >= 0 else "more"
    workers = f" with {pair[1].workers} workers" if pair[1].workers else ""
    return (
        f"ZeRO-{pair[1].axes[STAGE]} needs {formats.percent(abs(saved))} {word} memory than ZeRO-0{workers}: "
        f"{formats.num_bytes(high)} instead of {formats.num_bytes(low)} on the fullest worker (`{pair[1].name}`)."
    )


def _mode_sentence(cases: Sequence[Case]) -> str:
    """What bounds the fastest case that was also measured without its model or without its data."""
    for full in sorted(cases, key=lambda case: -(case.median("events_per_s") or 0.0)):
        others = {case.mode: case.median("events_per_s") for case in cases if case.name == full.name}
        data, compute, both = others.get("data-only"), others.get("compute-only"), others.get("full")
        if data and compute and both:
            bound = "the data path" if data < compute else "computing"
            return (
                f"Of `{full.name}`, the data path alone gives {formats.count(data)} events/s and computing alone "
                f"{formats.count(compute)}; both together reach {formats.percent(both / min(data, compute))} of the "
                f"slower, {bound}."
            )
    return ""


def _errors(cases: Sequence[Case], predicted: str, measured: str) -> list[tuple[float, Case]]:
    """(predicted / measured - 1, case) where both are known, by rising size."""
    found = []
    for case in cases:
        foreseen, seen = case.median(predicted), case.median(measured)
        if foreseen is not None and seen:
            found.append((foreseen / seen - 1, case))
    return sorted(found, key=lambda entry: abs(entry[0]))


def _median_error(errors: Sequence[tuple[float, Case]]) -> str:
    return formats.percent(abs(errors[len(errors) // 2][0]))


def _error_sentence(cases: Sequence[Case], what: str, predicted: str, measured: str) -> str:
    errors = _errors(cases, predicted, measured)
    if not errors:
        return ""
    worst, case = errors[-1]
    return (
        f"The predicted {what} is off by {_median_error(errors)} in the median of {len(errors)} cases, and by "
        f"{100 * worst:+.0f}% at worst (`{case.label}`)."
    )


def _failed_sentence(cases: Sequence[Case]) -> str:
    failed = [case for case in cases if not case.is_ok]
    if not failed:
        return f"All {len(cases)} cases went well."
    named = ", ".join(f"`{case.label}` ({case.status.replace('-', ' ')})" for case in failed[:6])
    more = f" and {len(failed) - 6} more" if len(failed) > 6 else ""
    return f"{len(failed)} of {len(cases)} cases did not go well: {named}{more}."
