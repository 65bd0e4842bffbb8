"""The sections of a report on runs: side by side, their curves, quality where it may be compared, how to run again."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from genrec.errors import DataError, ProtocolError
from genrec.reporting import comparison_tables, formats, tables
from genrec.reporting.bench_sections import Told
from genrec.reporting.comparison import Comparison, compare_runs
from genrec.reporting.document import Cell, Column, Section, Table, columns, number_cell, words
from genrec.reporting.history import metric_values
from genrec.reporting.profiles import profile_section, profiled, read_profile
from genrec.reporting.run_sections import summary as run_summary
from genrec.reporting.runs_charts import quality_chart, runs_charts
from genrec.reporting.runs_read import ReadRun, read_runs
from genrec.reporting.tables import Group, Row
from genrec.run_dir import value_differences


def runs_told(paths: Sequence[Path]) -> Told:
    """What these runs give to a report; raises DataError for a folder that is no run or holds a damaged file."""
    runs = read_runs(paths)
    comparison, refusal = _compared(runs)
    sections = [
        Section("runs", "Runs", tables=(_runs_table(runs),)),
        Section("curves", "Curves", charts=tuple(runs_charts(runs))),
        *_profiles(runs),
        *_quality(runs, comparison, refusal),
        *_settings(runs),
        Section("runs-environment", "Environment of the runs", groups=tuple(_environments(runs))),
        Section("runs-again", "Run them again" if len(runs) > 1 else "Run it again", commands=_commands(runs)),
    ]
    return Told(
        summary=tuple(_sentences(runs, comparison, refusal)),
        figures=tuple(_figures(runs, comparison)),
        sections=tuple(section for section in sections if section is not None),
    )


def _profiles(runs: Sequence[ReadRun]) -> list[Section]:
    """Where a step's time goes: in detail of one run, a bar each of several; nothing where none was profiled."""
    if len(runs) == 1:
        section = profile_section(read_profile(runs[0].directory))
        return [] if section is None else [section]
    chart = profiled([(run.name, run.directory) for run in runs])
    return [] if chart is None else [Section("profile", "Profile", charts=(chart,))]


def _compared(runs: Sequence[ReadRun]) -> tuple[Comparison | None, str]:
    """The comparison of the runs that have a test result, or why there is none; no word where one run has one."""
    tested = [run.directory.root for run in runs if "test" in run.evaluation]
    if len(tested) < 2:
        return None, ""
    try:
        return compare_runs(tested, "test"), ""
    except (ProtocolError, DataError) as error:
        return None, str(error)


def _runs_table(runs: Sequence[ReadRun]) -> Table:
    head = columns(
        "Run", "What it is", "Steps", "Training time", "Events/s", "Data wait", "Peak memory", "Last loss",
        worded=("What it is",),
    )  # fmt: skip
    return Table("", head, tuple(_run_line(run) for run in runs))


def _run_line(run: ReadRun) -> tuple[Cell, ...]:
    history = run.history
    elapsed, rate = history.last("elapsed_s"), history.median("events_per_s")
    wait, memory, loss = history.median("data_wait_fraction"), history.largest("memory_bytes"), history.last("loss")
    return (
        words(run.name),
        words(run_summary(run.config, history)),
        number_cell(history.last_step, formats.count(history.last_step)),
        number_cell(elapsed, formats.seconds(elapsed)),
        number_cell(rate, formats.count(rate), strong=True),
        number_cell(wait, formats.percent(wait)),
        number_cell(memory, formats.num_bytes(memory)),
        number_cell(loss),
    )


def _quality(runs: Sequence[ReadRun], comparison: Comparison | None, refusal: str) -> list[Section]:
    if comparison is not None:
        left_out = [run.name for run in runs if "test" not in run.evaluation]
        note = [f"Without a test result, and left out: {', '.join(left_out)}."] if left_out else []
        return [
            Section(
                "quality",
                "Quality",
                text=(comparison_tables.NOTE, *note),
                charts=(quality_chart(comparison),),
                tables=(_verdict_table(comparison), _metric_table(comparison)),
            ),
            Section(
                "protocol",
                "Protocol",
                text=("The same for all of these runs; runs that differ in a line of it are not compared.",),
                protocol=tuple(tables.protocol_rows(comparison.protocol)),
            ),
        ]
    alerts = (f"Quality is not compared. {' '.join(refusal.split())}",) if refusal else ()
    own = [] if refusal else [section for run in runs for section in _own_quality(run)]
    return [Section("quality", "Quality", alerts=alerts)] * bool(alerts) + own


def _own_quality(run: ReadRun) -> list[Section]:
    """The result of the one run that has one, with its protocol card."""
    role = next((name for name in ("test", "validation") if name in run.evaluation), None)
    if role is None:
        return []
    values = run.evaluation[role]
    measured, base = metric_values(values.get("metrics")), metric_values(values.get("popularity"))
    names = tables.ordered_metrics(list(measured))
    intervals = values.get("intervals") or {}
    lines = tuple(
        (
            words(formats.metric_name(name)),
            number_cell(measured[name], formats.metric(measured[name]), strong=name == run.config.evaluation.metric),
            words(tables.interval(intervals.get(name))),
            number_cell(base.get(name), formats.metric(base.get(name))),
        )
        for name in names
    )
    head = (Column("Metric", True), Column(run.name), Column("95% interval"), Column("Popularity"))
    protocol = tuple(tables.protocol_rows(values.get("protocol")))
    quality = Section(f"quality-{role}", f"{role.capitalize()} result of {run.name}", tables=(Table("", head, lines),))
    return [quality, *([Section("protocol", "Protocol", protocol=protocol)] if protocol else [])]


def _verdict_table(comparison: Comparison) -> Table:
    metric = formats.metric_name(comparison.decisive)
    head = columns("Run", metric, "95% interval", "Difference", "95% interval of it", "Verdict", worded=("Verdict",))
    lines = []
    for run, row in zip(comparison.runs, comparison_tables.verdicts(comparison), strict=True):
        found = run.differences.get(comparison.decisive)
        lines.append(
            (
                words(row.name),
                number_cell(run.metrics[comparison.decisive], row.value, strong=True),
                words(row.interval),
                number_cell(None if found is None else found.value, row.difference),
                words(row.difference_interval),
                words(row.verdict),
            )
        )
    return Table("Verdict", head, tuple(lines), "Each run against the first, over the users that both were tested on.")


def _metric_table(comparison: Comparison) -> Table:
    names = tables.ordered_metrics(comparison.metrics)
    head = columns("Run", *(formats.metric_name(name) for name in names))
    rows = comparison_tables.metric_rows(comparison, with_intervals=False)
    lines = tuple(
        (
            words(run.name),
            *(number_cell(run.metrics[name], row.cells[place]) for name, row in zip(names, rows, strict=True)),
        )
        for place, run in enumerate(comparison.runs)
    )
    return Table("All metrics", head, lines, f"{comparison_tables.MEANINGS}.")


def _settings(runs: Sequence[ReadRun]) -> list[Section]:
    """What each run sets otherwise than the first; for one run, otherwise than the defaults."""
    if len(runs) == 1:
        changed = tables.changed_rows(tables.config_groups(runs[0].config))
        plain = tuple(Row(row.name, row.value) for row in changed)
        text = "What the run sets: every value that differs from its default, or has none."
        return [Section("config", "Config", text=(text,), groups=(Group(runs[0].name, "", plain),))]
    base = runs[0].config.model_dump(mode="json")
    groups = []
    for run in runs[1:]:
        rows = [
            Row(name, change)
            for name, _, change in (
                line.partition(": ") for line in value_differences(base, run.config.model_dump(mode="json"))
            )
            if name != "name"
        ]
        groups.append(Group(run.name, "", tuple(rows or [Row("nothing", "the same settings")])))
    return [Section("config", "What the runs set otherwise than the first", groups=tuple(groups))]


def _environments(runs: Sequence[ReadRun]) -> list[Group]:
    """The environment of the first run, and of each other run what differs from it."""
    base = runs[0].environment
    groups = [Group(runs[0].name, "", tuple(_facts(base)))] if base else []
    for run in runs[1:]:
        lines = value_differences(base, run.environment)
        rows = [Row(name, change) for name, _, change in (line.partition(": ") for line in lines) if name != "command"]
        groups.append(Group(run.name, "against the first", tuple(rows or [Row("nothing", "the same environment")])))
    return groups


def _facts(environment: dict[str, object]) -> list[Row]:
    rows = []
    for group in tables.environment_groups(environment):
        prefix = "" if group.title == "general" else f"{group.title}."
        rows += [Row(prefix + row.name, row.value) for row in group.rows if row.name != "command"]
    return rows


def _commands(runs: Sequence[ReadRun]) -> tuple[str, ...]:
    found = []
    for run in runs:
        command = run.environment.get("command")
        again = f"genrec train {shlex.quote(str(run.directory.config_path))}"
        commit = run.environment.get("commit")
        at = f"    # {run.name}, commit {commit}" if commit else f"    # {run.name}"
        found.append(f"{command or again}{at}")
    return tuple(found)


def _sentences(runs: Sequence[ReadRun], comparison: Comparison | None, refusal: str) -> list[str]:
    timed = [(rate, run) for run in runs if (rate := run.history.median("events_per_s")) is not None]
    found = []
    if timed:
        rate, fastest = max(timed, key=lambda entry: entry[0])
        slowest = min(rate for rate, _ in timed)
        more = f", {formats.ratio(rate, slowest)} the slowest" if slowest and rate > 1.05 * slowest else ""
        found.append(f"Fastest: `{fastest.name}` with {formats.count(rate)} events/s{more}.")
    if comparison is not None:
        metric = comparison.decisive
        best = max(comparison.runs, key=lambda run: run.metrics[metric])
        differences = [run.differences[metric].verdict for run in comparison.runs[1:]]
        beyond = sum(verdict != "within noise" for verdict in differences)
        low, high = best.intervals[metric]
        found.append(
            f"Best on test: `{best.name}` with {formats.metric_name(metric)} {formats.metric(best.metrics[metric])} "
            f"(95%: {formats.metric(low)} to {formats.metric(high)}); {beyond} of {len(differences)} differ from the "
            "first beyond noise."
        )
    if refusal:
        found.append("Quality is not compared: the section says why.")
    unfinished = [f"`{run.name}`" for run in runs if "test" not in run.evaluation]
    if unfinished:
        found.append(f"Without a test result: {', '.join(unfinished)}.")
    poisoned = [f"`{run.name}`" for run in runs if any(not math.isfinite(v) for v in run.history.train["loss"])]
    if poisoned:
        found.append(f"With a loss that is no finite number: {', '.join(poisoned)}.")
    return found


def _figures(runs: Sequence[ReadRun], comparison: Comparison | None) -> list[Row]:
    figures = [Row("Runs", formats.count(len(runs)))] if len(runs) > 1 else []
    if comparison is not None:
        best = max(comparison.runs, key=lambda run: run.metrics[comparison.decisive])
        value = formats.metric(best.metrics[comparison.decisive])
        figures.append(Row(f"Best {formats.metric_name(comparison.decisive)}", value, best.name, True))
    timed = [(rate, run) for run in runs if (rate := run.history.median("events_per_s")) is not None]
    if timed:
        rate, fastest = max(timed, key=lambda entry: entry[0])
        figures.append(Row("Best throughput", formats.count(rate), f"events per second, {fastest.name}"))
    memory = [found for run in runs if (found := run.history.largest("memory_bytes"))]
    if memory:
        figures.append(Row("Peak memory", formats.num_bytes(max(memory)), "first worker"))
    return figures
