"""The tables of a comparison as plain rows of text: what the terminal and the HTML page show."""

from collections.abc import Callable
from dataclasses import dataclass

from genrec.evaluation.bootstrap import Difference, Interval
from genrec.reporting import formats, tables
from genrec.reporting.comparison import ComparedRun, Comparison

MARKS = {"better beyond noise": "▲", "worse beyond noise": "▼", "within noise": "≈"}
MEANINGS = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
NOTE = (
    "Intervals are 95%, over users (2,000 resamples); a difference is over the users that both runs were tested on. "
    "They hold the noise of users, not of seeds: train several before believing a small difference. "
    "Where nothing differs, about one in twenty still gets ▲ or ▼."
)
STARTED = "Weights that began as another run's (starts from) may have seen what is asked here."
SLICED = "With standard errors over the users of the slice."
SPREAD = "Mean ± standard deviation over runs that differ in their seed alone."


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A line of text for each run under one heading; `strong` marks the metric that decides."""

    name: str
    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run against the first, at the metric that decides."""

    name: str
    value: str
    interval: str
    difference: str
    difference_interval: str
    verdict: str


def verdicts(comparison: Comparison) -> list[Verdict]:
    """A line for each run, at the deciding metric."""
    metric = comparison.decisive
    rows = []
    for run in comparison.runs:
        found = run.differences.get(metric)
        rows.append(
            Verdict(
                run.name,
                formats.metric(run.metrics[metric]),
                _interval(run.intervals[metric]),
                formats.MISSING if found is None else f"{found.value:+.4f}",
                formats.MISSING if found is None else _interval((found.low, found.high), "+.4f"),
                "the first run" if found is None else found.verdict,
            )
        )
    return rows


def metric_rows(comparison: Comparison, *, with_intervals: bool) -> list[ComparedRow]:
    """Every metric of every run; a mark says what the difference to the first run is worth."""
    return [
        ComparedRow(
            formats.metric_name(name),
            tuple(_cell(run, name, with_intervals) for run in comparison.runs),
            name == comparison.decisive,
        )
        for name in tables.ordered_metrics(comparison.metrics)
    ]


def note(comparison: Comparison) -> str:
    """What the numbers hold, and what they may not."""
    return f"{NOTE} {STARTED}" if any("starts_from" in run.of_the_run for run in comparison.runs) else NOTE


@dataclass(frozen=True, slots=True)
class SliceTable:
    """The slices of one kind at the metric that decides: a row for each slice of the first run."""

    title: str
    hint: str
    rows: tuple[ComparedRow, ...]


def slice_tables(comparison: Comparison) -> list[SliceTable]:
    """A table for each kind of slice that the first run was measured in; empty where it was not."""
    by_run = [
        {group.title: group for group in tables.slice_groups(_role(run), comparison.decisive)}
        for run in comparison.runs
    ]
    metric = formats.metric_name(comparison.decisive)
    return [
        SliceTable(
            f"{metric} by {group.title[0].lower()}{group.title[1:]}",
            group.hint,
            tuple(
                ComparedRow(
                    f"{row.name} ({row.num_users} users)",
                    tuple(_slice_cell(groups.get(group.title), row.name) for groups in by_run),
                )
                for row in group.rows
            ),
        )
        for group in by_run[0].values()
    ]


def _role(run: ComparedRun) -> dict[str, object]:
    return {"slices": run.slices, "num_users": run.num_users}


def _slice_cell(group: tables.SliceGroup | None, name: str) -> str:
    for row in () if group is None else group.rows:
        if row.name == name:
            return row.value if row.standard_error == formats.MISSING else f"{row.value} ± {row.standard_error}"
    return formats.MISSING


def seed_rows(comparison: Comparison) -> list[ComparedRow]:
    """Every metric of every group of seeds."""
    return [
        ComparedRow(
            formats.metric_name(name),
            tuple(
                f"{formats.metric(mean)} ± {formats.metric(spread)}"
                for mean, spread in (group.metrics[name] for group in comparison.seed_groups)
            ),
            name == comparison.decisive,
        )
        for name in tables.ordered_metrics(comparison.metrics)
    ]


def seed_names(comparison: Comparison) -> list[str]:
    """What stands above each group: the name of its first run, and its seeds."""
    return [f"{group.names[0]}, seeds {', '.join(map(str, group.seeds))}" for group in comparison.seed_groups]


def other_rows(comparison: Comparison) -> list[ComparedRow]:
    """What the runs cost, what their lists hold, and what of the protocol card they may differ in."""
    runs, cut_off = comparison.runs, comparison.decisive.partition("@")[2]
    columns: list[tuple[str, Callable[[ComparedRun], str]]] = [
        ("Training time", lambda run: formats.seconds(run.training_s)),
        ("Events per second", lambda run: formats.count(run.events_per_s)),
        ("Parameters", lambda run: formats.count(run.num_parameters)),
        (f"Coverage@{cut_off}", lambda run: formats.percent(run.beyond_accuracy.get(f"coverage@{cut_off}"))),
        (f"Novelty@{cut_off}, bits", lambda run: formats.number(run.beyond_accuracy.get(f"novelty@{cut_off}"), 3)),
        (f"Gini@{cut_off}", lambda run: formats.number(run.beyond_accuracy.get(f"gini@{cut_off}"), 3)),
        ("Users", lambda run: formats.count(run.num_users)),
        ("Users shared with the first", lambda run: formats.count(run.num_shared)),
    ]
    rows = [ComparedRow(name, tuple(text(run) for run in runs)) for name, text in columns]
    lines = dict.fromkeys(name for run in runs for name in run.of_the_run)
    for line in lines:
        values = tuple(formats.plain(run.of_the_run.get(line)) for run in runs)
        rows.append(ComparedRow(line.replace("_", " ").capitalize(), values))
    return rows


def _cell(run: ComparedRun, name: str, with_intervals: bool) -> str:
    found: Difference | None = run.differences.get(name)
    text = formats.metric(run.metrics[name])
    text += f" ({_interval(run.intervals[name])})" if with_intervals else ""
    return text if found is None else f"{text} {MARKS[found.verdict]}"


def _interval(interval: Interval, form: str = ".4f") -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
