"""The tables of a sweep's page, as plain rows of text."""

import math
from dataclasses import dataclass
from typing import Any

from genrec.evaluation.seeds import SeedMean
from genrec.reporting import formats
from genrec.reporting.sweep_record import Retrained, SweepRecord, settings_of
from genrec.reporting.tables import Row

MAX_ROWS = 100


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table; `strong` marks the best."""

    name: str
    cells: tuple[str, ...]
    strong: bool = False


def figures(record: SweepRecord) -> list[Row]:
    """The numbers at the head of the page."""
    best, at_once = record.ranked[0] if record.ranked else None, record.values["max_concurrent"]
    rows = [
        Row("Best", "–" if best is None else _value(best["best"][record.metric]), hint=record.metric, changed=True),
        Row("Trials", str(len(record.trials)), hint=_states(record)),
        Row("Time", formats.seconds(record.seconds), hint=_overhead(record)),
        Row("Worker hours", f"{record.worker_seconds / 3_600:.2f}", hint=f"{at_once} at a time"),
    ]
    if record.price is not None:
        rows.append(Row("Price", f"{record.price:.2f}", hint="at budget.price_per_worker_hour"))
    saved = record.saved_worker_seconds()
    if saved is not None:
        share = saved / (saved + record.worker_seconds)
        rows.append(Row("Saved by stopping", formats.seconds(saved), hint=f"worker time, {formats.percent(share)}"))
    return rows


def leaderboard_head(record: SweepRecord) -> list[str]:
    """Headings of the leaderboard."""
    return ["Trial", "State", *record.keys, *map(_name, record.values["metrics"]), "95% interval", "Epoch", *_COSTS]


_COSTS = ("Time", "Worker time", "Events", "Price")


def leaderboard(record: SweepRecord) -> list[Line]:
    """Every trial that has a value, the best first, with the interval over users where its run is finished."""
    return [_line(record, trial, place) for place, trial in enumerate(record.ranked[:MAX_ROWS])]


def _line(record: SweepRecord, trial: dict[str, Any], place: int) -> Line:
    settings, best, progress = settings_of(trial), trial["best"], trial["progress"]
    interval = trial["intervals"].get(record.metric)
    cells = (
        trial["state"],
        *(formats.plain(settings[key]) if key in settings else formats.MISSING for key in record.keys),
        *(_value(best.get(name)) for name in record.values["metrics"]),
        formats.MISSING if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        f"{best['epoch']:.3g} of {progress['epoch']:.3g}",
        formats.seconds(progress["seconds"]),
        formats.seconds(progress["worker_seconds"]),
        formats.count(progress["events"]),
        formats.MISSING if trial["price"] is None else f"{trial['price']:.3f}",
    )
    return Line(f"{trial['number']:04d}", cells, strong=place == 0)


def losers(record: SweepRecord) -> list[Row]:
    """The trials without a value: rejected before they started, failed with their error, cut off, or still to come."""
    ranked = {trial["number"] for trial in record.ranked}
    rest = [trial for trial in record.trials if trial["number"] not in ranked]
    return [
        Row(f"{trial['number']:04d} {trial['state']}", trial["reason"] or "no validation yet", hint=_settings(trial))
        for trial in rest
    ]


def takeovers(record: SweepRecord) -> list[Row]:
    """Population-based training: who went on from whom, at which step, with which settings."""
    return [
        Row(
            f"{trial['number']:04d} at step {entry['step']:,}",
            f"from {entry['from']}",
            hint=", ".join(f"{key}={formats.plain(value)}" for key, value in entry["params"].items()),
        )
        for trial in record.trials
        for entry in trial["progress"]["took_over"]
    ]


def retrained(record: SweepRecord) -> list[Line]:
    """A line for each config that was trained again: what it was chosen by, and what it reaches with fresh seeds."""
    groups = record.groups()
    return [
        Line(
            group.group,
            (
                ", ".join(f"{key}={formats.plain(value)}" for key, value in group.settings.items()),
                _value(group.selected),
                _mean(group.validation),
                formats.MISSING if group.selected is None else f"{group.selected - group.validation.mean:+.4f}",
                formats.MISSING if group.test is None else _mean(group.test),
                str(group.validation.num_seeds),
            ),
            strong=group is _best_group(record, groups),
        )
        for group in groups
    ]


def verdict(record: SweepRecord) -> str:
    """Whether the best config beats the base beyond the noise of seeds, and what selection luck was in its number."""
    again, groups = record.retrained, record.groups()
    if again is not None and again["state"] != "finished":
        done = sum(trial["state"] == "finished" for trial in again["trials"])
        why = f" ({again['reason']})" if again["reason"] else ""
        total = again["spec"]["budget"]["trials"]
        return (
            f"The retraining is not over: {done} of its {total} trainings are{why}. The same command goes on with it."
        )
    base = next((group for group in groups if group.group == "base"), None)
    best = _best_group(record, groups)
    if best is None and base is not None:
        return f"No trial was better than the base config, which reaches {_mean(base.validation)} with fresh seeds."
    if best is None:
        return ""
    luck = ""
    if best.selected is not None:
        lost = record.sign * (best.selected - best.validation.mean)
        luck = (
            f" Its number in the sweep was {_value(best.selected)}: {abs(lost):.4f} "
            f"{'better' if lost > 0 else 'worse'} than its mean over fresh seeds, which is the luck of being selected."
        )
    if base is None:
        return luck.strip()
    low, high = (base, best) if record.sign > 0 else (best, base)
    apart = low.validation.high < high.validation.low
    return (
        f"Trial {best.group} reaches {_mean(best.validation)} and the base config {_mean(base.validation)}: "
        f"{'the intervals do not overlap' if apart else 'the intervals overlap, so more seeds are needed'}.{luck}"
    )


def _best_group(record: SweepRecord, groups: list[Retrained]) -> Retrained | None:
    chosen = [group for group in groups if group.group != "base"]
    return max(chosen, key=lambda group: record.sign * group.validation.mean, default=None)


def _states(record: SweepRecord) -> str:
    counts: dict[str, int] = {}
    for trial in record.trials:
        counts[trial["state"]] = counts.get(trial["state"], 0) + 1
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def _overhead(record: SweepRecord) -> str:
    return "" if record.overhead is None else f"{formats.percent(record.overhead)} outside of trials"


def _settings(trial: dict[str, Any]) -> str:
    return ", ".join(f"{key}={formats.plain(value)}" for key, value in settings_of(trial).items())


def _mean(mean: SeedMean) -> str:
    if not math.isfinite(mean.low):
        return f"{_value(mean.mean)} (one seed)"
    return f"{_value(mean.mean)} ({_value(mean.low)} to {_value(mean.high)})"


def _value(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def _name(metric: str) -> str:
    return formats.metric_name(metric) if "@" in metric else metric.replace("_", " ").capitalize()
