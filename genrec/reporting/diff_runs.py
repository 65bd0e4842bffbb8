"""The difference of two runs: quality over shared users, throughput by its log lines, peak memory."""

import math
from pathlib import Path

from genrec.errors import ConfigError, DataError, ProtocolError
from genrec.reporting import comparison_tables, formats, tables
from genrec.reporting.comparison import compare_runs
from genrec.reporting.diff import NOT_THE_MACHINE, Diff, Side
from genrec.reporting.runs_read import ReadRun, read_runs
from genrec.reporting.verdicts import Change, Measured, beyond_threshold, judged, spoken, spread_of_lines

QUALITY = {"better beyond noise": "better", "worse beyond noise": "worse"}


def diff_runs(before: Path, after: Path, threshold: float, *, strict: bool) -> Diff:
    """What changed from one run to another; the deciding metric, throughput and peak memory may be regressions.

    With `strict`, raises ProtocolError or DataError when only the quality cannot be compared, and ConfigError when
    nothing can; else that is a note.
    """
    old, new = read_runs([before, after])
    changes, notes = _quality(old, new, strict=strict)
    changes += [change for change in (_throughput(old, new, threshold), _memory(old, new, threshold)) if change]
    if strict and not changes:
        raise ConfigError(
            f"{before} and {after} have neither a test result nor log lines of both to compare, so no gate can judge; "
            "train them for longer, or give others."
        )
    return Diff(_side(old), _side(new), threshold, tuple(changes), tuple(notes))


def _side(run: ReadRun) -> Side:
    environment = run.environment
    versions = environment.get("versions")
    return Side(
        name=run.name,
        path=run.directory.root,
        commit=str(environment.get("commit", "unknown")),
        config=run.config.model_dump(mode="json"),
        versions=dict(versions) if isinstance(versions, dict) else {},
        machine={key: value for key, value in environment.items() if key not in NOT_THE_MACHINE},
    )


def _quality(old: ReadRun, new: ReadRun, *, strict: bool) -> tuple[list[Change], list[str]]:
    if "test" not in old.evaluation and "test" not in new.evaluation:
        return [], ["Neither run has a test result, so quality is not compared."]
    try:
        comparison = compare_runs([old.directory.root, new.directory.root], "test")
    except (ProtocolError, DataError) as error:
        if strict:
            raise
        return [], [f"Quality is not compared. {' '.join(str(error).split())}"]
    base, other = comparison.runs
    changes = []
    for name in tables.ordered_metrics(comparison.metrics):
        found = other.differences[name]
        before, after = (Measured(run.metrics[name], *run.intervals[name], run.num_shared) for run in (base, other))
        changes.append(
            Change(
                "quality",
                formats.metric_name(name),
                before,
                after,
                formats.metric,
                QUALITY.get(found.verdict, found.verdict),
                is_regression=name == comparison.decisive and found.verdict == "worse beyond noise",
            )
        )
    return changes, [comparison_tables.NOTE]


def _throughput(old: ReadRun, new: ReadRun, threshold: float) -> Change | None:
    before, after = (spread_of_lines(run.history.train["events_per_s"].tolist()) for run in (old, new))
    if before is None or after is None:
        return None
    verdict = judged(before, after, threshold, "up")
    said = spoken("events_per_s", verdict)
    return Change("throughput", "events/s", before, after, formats.count, said, is_regression=verdict == "worse")


def _memory(old: ReadRun, new: ReadRun, threshold: float) -> Change | None:
    """The peak of a run is one number, and hardly varies: the threshold alone decides."""
    peaks = [run.history.largest("memory_bytes") or math.nan for run in (old, new)]
    if not all(math.isfinite(peak) for peak in peaks):
        return None
    before, after = (Measured(peak, peak, peak, 1) for peak in peaks)
    verdict = beyond_threshold(before, after, threshold, "down")
    said = spoken("memory_bytes", verdict)
    return Change(
        "memory", "peak, first worker", before, after, formats.num_bytes, said, is_regression=verdict == "worse"
    )
