"""The difference of two results of a benchmark, case by case."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from genrec.bench.result import Row
from genrec.errors import ConfigError
from genrec.reporting import formats
from genrec.reporting.bench_cases import OK, Case, is_training, reading, training_cases
from genrec.reporting.bench_tables import grouped_rows, value_text
from genrec.reporting.diff import Diff, Side
from genrec.reporting.sources import BenchSource
from genrec.reporting.verdicts import ONE_READING, Change, Measured, direction_of, judged, measured, spoken

TITLES = {"events_per_s": "events/s", "step_s": "step time", "peak_bytes": "peak memory"}


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the readings of one case are, whatever the benchmark."""

    status: str
    readings: Mapping[str, Sequence[float]]


def diff_results(before: BenchSource, after: BenchSource, threshold: float, *, strict: bool) -> Diff:
    """What changed between two results of one benchmark.

    Raises ConfigError when they share no case, and with `strict` when no case has two readings on both sides and none
    has begun to fail: there is then no noise to know, and a gate could not fail.
    """
    old, new = _subjects(before), _subjects(after)
    shared = [name for name in old if name in new]
    if not shared:
        raise ConfigError(
            f"{before.path} ({before.result.name}) and {after.path} ({after.result.name}) share no case; compare two "
            "results of the same benchmark."
        )
    changes = [change for name in old for change in _changes(name, old[name], new.get(name), threshold)]
    changes += [_one_sided(name, "new", new[name]) for name in new if name not in old]
    single = {change.subject for change in changes if change.verdict == ONE_READING}
    judgeable = [c for c in changes if isinstance(c.before, Measured) and c.verdict != ONE_READING]
    if strict and not judgeable and not any(change.is_regression for change in changes):
        why = "has two readings on both sides" if single else "has a reading on both sides"
        raise ConfigError(
            f"No case of {before.path} and {after.path} {why}, so nothing tells a change from noise; measure with more "
            "repetitions, and mend the cases that fail."
        )
    notes = [f"{len(single)} cases were read once on a side, so they get no verdict."] if single else []
    return Diff(_side(before), _side(after), threshold, tuple(changes), tuple(notes))


def _side(source: BenchSource) -> Side:
    result = source.result
    return Side(result.name, source.path, result.commit, result.config, result.versions, result.machine)


def _subjects(source: BenchSource) -> dict[str, _Subject]:
    if is_training(source.result):
        return {case.label: _training_subject(case) for case in training_cases(source.result.rows)}
    named, measured_keys, groups = grouped_rows(source.result.rows)
    together: dict[str, list[Row]] = {}
    for key, rows in groups.items():
        label = ", ".join(value for name, value in zip(named, key, strict=True) if name != "status") or "all rows"
        together.setdefault(label, []).extend(rows)
    return {label: _subject(rows, measured_keys) for label, rows in together.items()}


def _subject(rows: Sequence[Row], measured_keys: Sequence[str]) -> _Subject:
    good = [row for row in rows if row.get("status") in (None, OK)]
    bad = [str(row["status"]) for row in rows if row.get("status") not in (None, OK)]
    values = {key: [value for row in good if (value := reading(row.get(key))) is not None] for key in measured_keys}
    return _Subject(bad[0] if bad else OK, values)


def _training_subject(case: Case) -> _Subject:
    speed = "events_per_s" if "events_per_s" in case.readings else "step_s"
    kept = {key: case.readings[key] for key in (speed, "peak_bytes") if key in case.readings}
    return _Subject(case.status, kept)


def _changes(name: str, old: _Subject, new: _Subject | None, threshold: float) -> Iterator[Change]:
    if new is None:
        yield _one_sided(name, "gone", old)
        return
    if old.status != new.status:
        verdict = f"was {old.status}, now {new.status}"
        yield Change(name, "status", old.status, new.status, formats.number, verdict, is_regression=old.status == OK)
    for key in (key for key in old.readings if key in new.readings):
        before, after = measured(old.readings[key]), measured(new.readings[key])
        if before is None or after is None:
            continue
        verdict = judged(before, after, threshold, direction_of(key))
        yield Change(
            name,
            TITLES.get(key, key.replace("_", " ")),
            before,
            after,
            partial(value_text, key),
            spoken(key, verdict),
            is_regression=verdict == "worse",
        )


def _one_sided(name: str, verdict: str, there: _Subject) -> Change:
    gone = verdict == "gone"
    before, after = (there.status, formats.MISSING) if gone else (formats.MISSING, there.status)
    return Change(name, "status", before, after, formats.number, verdict, is_regression=gone and there.status == OK)
