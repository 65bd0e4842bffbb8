"""What a benchmark of training says, in sentences and key figures, all computed from its cases."""

from collections.abc import Sequence
from statistics import median

from genrec.bench.result import Summary
from genrec.reporting import formats
from genrec.reporting.bench_cases import Case
from genrec.reporting.bench_scaling import loss_sentence, scalings
from genrec.reporting.tables import Row

STAGE = "engine.zero_stage"
CASES = "Cases"
"""The key figure that says how many went well."""


def training_summary(cases: Sequence[Case]) -> list[str]:
    """The sentences; one that the cases have no numbers for is left out, failures are always named."""
    full = [case for case in cases if case.mode == "full"]
    found = [
        _fastest_sentence(full),
        _scaling_sentence(full),
        _zero_sentence(full),
        _kept_sentence(full),
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
    if (best_stage := _best_stage(full)) is not None and best_stage[1] > 0:
        stage, saved = best_stage
        figures.append(Row("Memory saved", formats.percent(saved), f"ZeRO-{stage} beside ZeRO-0"))
    if errors := _errors(full, "predicted_bytes", "peak_bytes"):
        figures.append(Row("Memory prediction", _median_error(errors), "median error"))
    num_ok = sum(case.is_ok for case in cases)
    figures.append(Row(CASES, f"{num_ok} of {len(cases)}", "went well"))
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
    if len(best.speedups) > 1:
        low, high = (formats.percent(best.efficiency_of(end(best.speedups))) for end in (min, max))
        text += f", {low} to {high} over {len(best.speedups)} rounds"
    if len(found) > 1:
        efficiencies = [scaling.efficiency for scaling in found]
        low, high = formats.percent(min(efficiencies)), formats.percent(max(efficiencies))
        text += f"; {low} to {high} over {len(found)} settings"
    return f"{text}.{loss_sentence(best)}"


def _zero_pairs(cases: Sequence[Case]) -> dict[int, list[tuple[Case, Case]]]:
    """By stage: the cases of stage 0 on most workers, each with the one that differs in its stage alone."""
    by_others: dict[tuple[tuple[str, str], ...], dict[int, Case]] = {}
    staged = [case for case in cases if isinstance(case.axes.get(STAGE), int) and case.median("peak_bytes")]
    most = max((case.workers or 0 for case in staged), default=0)
    for case in staged:
        if (case.workers or 0) == most:
            others = tuple((key, str(value)) for key, value in case.axes.items() if key != STAGE)
            by_others.setdefault(others, {}).setdefault(int(case.axes[STAGE]), case)
    pairs: dict[int, list[tuple[Case, Case]]] = {}
    for stages in by_others.values():
        for stage in sorted(stages.keys() - {0}) if 0 in stages else ():
            pairs.setdefault(stage, []).append((stages[0], stages[stage]))
    return pairs


def _best_stage(cases: Sequence[Case]) -> tuple[int, float] | None:
    """The stage that saves most beside stage 0, and the part that it saves: the median over the settings."""
    saved = {stage: median(_saved(pair) for pair in pairs) for stage, pairs in _zero_pairs(cases).items()}
    return max(saved.items(), key=lambda entry: entry[1], default=None)


def _saved(pair: tuple[Case, Case]) -> float:
    """The part of the first one's memory that the second does without; below 0 where it needs more."""
    low, high = (case.median("peak_bytes") or 0.0 for case in pair)
    return 1 - high / low if low else 0.0


def _kept_sentence(cases: Sequence[Case]) -> str:
    """What a worker keeps between steps by ZeRO stage, of the cases with most workers that differ in nothing else."""
    counted = [case for case in cases if case.median("optimizer_bytes") is not None and STAGE in case.axes]
    most = max((case.workers or 0 for case in counted), default=0)
    first = next((case for case in counted if case.workers == most), None)
    if first is None:
        return ""
    alike = [case for case in counted if all(case.axes.get(k) == v for k, v in first.axes.items() if k != STAGE)]
    if len(alike) < 2:
        return ""
    told = []
    for case in alike:
        weights, optimizer = (formats.num_bytes(case.median(f"{part}_bytes")) for part in ("weights", "optimizer"))
        told.append(f"{weights} and {optimizer} at ZeRO-{case.axes[STAGE]}")
    workers = f"each of {most} workers" if most > 1 else "a worker"
    return f"From step to step {workers} keeps of weights and of optimizer state: {', '.join(told)}."


def _zero_sentence(cases: Sequence[Case]) -> str:
    """Peak memory by stage beside stage 0: of one setting in bytes, of several the median and the range."""
    pairs, best = _zero_pairs(cases), _best_stage(cases)
    if best is None:
        return ""
    (low, high), *more = pairs[best[0]]
    workers = f" with {low.workers} workers" if low.workers else ""
    if not more:
        sizes = (formats.num_bytes(case.median("peak_bytes")) for case in (high, low))
        return (
            f"ZeRO-{high.axes[STAGE]} needs {_change(_saved((low, high)))} memory than ZeRO-0{workers}: "
            f"{' instead of '.join(sizes)} on the fullest worker (`{high.name}`)."
        )
    told = []
    for stage, of_stage in sorted(pairs.items()):
        saved = sorted(_saved(pair) for pair in of_stage)
        told.append(f"ZeRO-{stage} {_change(median(saved))} ({_change(saved[-1])} to {_change(saved[0])})")
    return f"Peak memory beside ZeRO-0{workers}, median and range of {len(more) + 1} settings: {', '.join(told)}."


def _change(saved: float) -> str:
    return f"{formats.percent(abs(saved))} {'less' if saved >= 0 else 'more'}"


def _mode_sentence(cases: Sequence[Case]) -> str:
    """What bounds the fastest case that was also measured without its model or without its data."""
    for full in sorted(cases, key=lambda case: -(case.median("events_per_s") or 0.0)):
        others = {case.mode: case.median("events_per_s") for case in cases if case.name == full.name}
        data, compute, both = others.get("data-only"), others.get("compute-only"), others.get("full")
        if data and compute and both:
            bound = "Reading data" if data < compute else "Computing"
            return (
                f"{bound} is the bottleneck of `{full.name}`: reading alone gives {formats.count(data)} events/s, "
                f"computing alone {formats.count(compute)}, and both together {formats.count(both)}, "
                f"{formats.percent(both / min(data, compute))} of the slower."
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
    number = "1 case" if len(errors) == 1 else f"{len(errors)} cases"
    return (
        f"The predicted {what} is off by {_median_error(errors)} in the median of {number}, and by "
        f"{100 * worst:+.0f}% at worst (`{case.label}`)."
    )


def _failed_sentence(cases: Sequence[Case]) -> str:
    failed = [case for case in cases if not case.is_ok]
    if not failed:
        return f"All {len(cases)} cases went well."
    named = ", ".join(f"`{case.label}` ({case.status.replace('-', ' ')})" for case in failed[:6])
    more = f" and {len(failed) - 6} more" if len(failed) > 6 else ""
    return f"{len(failed)} of {len(cases)} cases did not go well: {named}{more}."
