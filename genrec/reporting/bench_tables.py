"""The tables of any benchmark: cases of training with their spread, and medians of whatever other rows hold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrec.bench.result import Row, Summary, summarize
from genrec.reporting import formats
from genrec.reporting.bench_cases import STEP_PARTS, Case, CaseLabels, reading, short_name
from genrec.reporting.document import Cell, Column, Table, columns, number_cell, words

REPEATS = ("repetition", "round", "repeat", "attempt")  # columns that number the repetitions of one thing
NOISE = ("load_average_1_min",)
SAID = ("error", "message")
ONE_READING = "One reading of each case, so nothing is known of its spread."
MEASURED = ("_s", "_bytes", "_per_s", "_seconds", "_fraction", "_ratio", "_gib", "mfu", "seconds", "loss")


def value_text(key: str, value: float | None) -> str:
    """A reading with the unit that the end of its name gives it."""
    if key.endswith("_per_s") or "_per_" in key:
        return formats.number(value)
    if key.endswith("_s") or key == "seconds":
        short = value is not None and 0 < abs(value) < 1
        return f"{formats.number(1e3 * (value or 0.0), 3)} ms" if short else formats.seconds(value)
    if key.endswith("_bytes"):
        return formats.num_bytes(value)
    return formats.percent(value) if key == "mfu" or key.endswith("_fraction") else formats.number(value)


def case_table(cases: Sequence[Case]) -> Table:
    """A line for each case: what was varied, how it went, throughput and its spread, memory, and what was foreseen.

    A column that would say the same of every case is left out where the summary says it: the status when all went well,
    the number of readings when there is one, tokens where they are the events, workers where all have as many.
    """
    shown = [*_naming_columns(cases), *_speed_columns(cases), *_memory_columns(cases)]
    head = tuple(Column(one.name, one.words) for one in shown)
    lines = tuple(tuple(one.cell(case) for one in shown) for case in cases)
    repeated = any(_readings(case) > 1 for case in cases)
    text = "Medians over the repetitions; the spread is (largest - smallest) / median." if repeated else ONE_READING
    workers = {case.workers for case in cases}
    if len(workers) == 1 and (number := workers.pop()):
        text += f" All on {number} worker{'s' if number > 1 else ''}."
    return Table("Cases", head, lines, text)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A column of cases."""

    name: str
    cell: Callable[[Case], Cell]
    words: bool = False


def _naming_columns(cases: Sequence[Case]) -> Iterator[_Shown]:
    """What tells the cases apart, and how they went."""
    axes = [key for key in dict.fromkeys(key for case in cases for key in case.axes) if key != "cluster.workers"]
    # Where the settings tell the cases apart, their columns do, and a name that repeats them takes room.
    if not CaseLabels.of(cases).varied:
        yield _Shown("Case", lambda case: words(case.name), True)
    short = [short_name(axis) for axis in axes]
    for axis, name in zip(axes, short, strict=True):
        yield _Shown(axis if short.count(name) > 1 else name, _of_axis(axis), True)
    if len({case.mode for case in cases}) > 1:
        yield _Shown("Mode", lambda case: words(case.mode), True)
    if len({case.workers for case in cases}) > 1:
        yield _Shown("Workers", lambda case: _count(case.workers))
    if not all(case.is_ok for case in cases):
        yield _Shown("Status", lambda case: words(case.status.replace("-", " ")), True)
    if any(_readings(case) > 1 for case in cases):
        yield _Shown("Readings", lambda case: _count(_readings(case)))


def _speed_columns(cases: Sequence[Case]) -> Iterator[_Shown]:
    titles = {"events_per_s": "Events/s", "tokens_per_s": "Tokens/s", "step_s": "Step", "mfu": "MFU"}
    if all(case.median("tokens_per_s") == case.median("events_per_s") for case in cases):
        titles.pop("tokens_per_s")
    for key, title in titles.items():
        if _any(cases, key):
            strong = key == "events_per_s"
            yield _Shown(title, _of_reading(key, strong=strong))
            if strong and any(_readings(case) > 1 for case in cases):
                yield _Shown("Spread", _spread)


def _memory_columns(cases: Sequence[Case]) -> Iterator[_Shown]:
    """Measured and predicted; a prediction is of training as a whole."""
    if _any(cases, "peak_bytes"):
        yield _Shown("Peak memory", _of_reading("peak_bytes"))
    if _any(cases, "predicted_bytes"):
        missing = words(formats.MISSING)
        yield _Shown("Predicted", lambda case: _value(case, "predicted_bytes") if case.mode == "full" else missing)
        if _any(cases, "peak_bytes"):
            yield _Shown("Error of it", lambda case: _error(case, "bytes") if case.mode == "full" else missing)
    for key, title in (("weights_bytes", "Weights kept"), ("optimizer_bytes", "Optimizer kept")):
        if _any(cases, key):
            yield _Shown(title, _of_reading(key))


def _of_axis(axis: str) -> Callable[[Case], Cell]:
    return lambda case: _axis(case.axes.get(axis))


def _of_reading(key: str, *, strong: bool = False) -> Callable[[Case], Cell]:
    return lambda case: _value(case, key, strong=strong)


def _readings(case: Case) -> int:
    return max((found.count for found in case.values.values()), default=0)


def _spread(case: Case) -> Cell:
    found = case.values.get("events_per_s")
    spread = found.spread if found is not None and found.count > 1 else None
    return number_cell(spread, formats.percent(spread))


def _error(case: Case, what: str) -> Cell:
    """How far the prediction is off, of memory (`bytes`) or of the time of a step (`step_s`)."""
    seen, foreseen = case.median("peak_bytes" if what == "bytes" else what), case.median(f"predicted_{what}")
    error = None if foreseen is None or not seen else foreseen / seen - 1
    return number_cell(error, formats.MISSING if error is None else f"{100 * error:+.0f}%")


def step_table(cases: Sequence[Case]) -> Table | None:
    """The phases of a step of each case; None when none was timed."""
    parts = [part for part in STEP_PARTS if _any(cases, f"{part}_s")]
    timed = [case for case in cases if any(case.median(f"{part}_s") is not None for part in parts)]
    if not timed:
        return None
    head = columns("Case", *(part.replace("_", " ").capitalize() for part in parts))
    labels = CaseLabels.of(timed)
    lines = [(words(labels[case]), *(_value(case, f"{part}_s") for part in parts)) for case in timed]
    return Table("Time of a step by phase", head, tuple(lines), "Medians." + labels.explained)


def foreseen_table(cases: Sequence[Case]) -> Table | None:
    """The time of a step beside the predicted one; None where none was predicted."""
    known = [case for case in cases if case.median("predicted_step_s") is not None]
    if not known:
        return None
    labels = CaseLabels.of(known)
    lines = [
        (words(labels[case]), _value(case, "step_s"), _value(case, "predicted_step_s"), _error(case, "step_s"))
        for case in known
    ]
    head = columns("Case", "Measured", "Predicted", "Error")
    return Table("Predicted time of a step", head, tuple(lines), "Medians." + labels.explained)


def failed_table(cases: Sequence[Case]) -> Table | None:
    """What the cases that did not go well said; None when there are none."""
    failed = [case for case in cases if not case.is_ok]
    lines = [
        (words(case.label), words(case.status.replace("-", " ")), words(case.error or formats.MISSING))
        for case in failed
    ]
    head = columns("Case", "Status", "What it said", worded=("Status", "What it said"))
    return Table("Cases that did not go well", head, tuple(lines)) if failed else None


def grouped_rows(rows: Sequence[Row]) -> tuple[list[str], list[str], dict[tuple[str, ...], list[Row]]]:
    """The columns that name what was read, those of the readings, and the rows of each thing that was read."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in (*REPEATS, *NOISE, *SAID)]
    measured = [key for key in keys if _is_measured(key, [row.get(key) for row in rows])]
    named = [key for key in keys if key not in measured]
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(tuple(formats.plain(row.get(key)) for key in named), []).append(row)
    return named, measured, together


def rows_table(rows: Sequence[Row]) -> Table | None:
    """Rows of any shape: those that agree in all that is not a reading are one line of medians with their spread."""
    named, measured, together = grouped_rows(rows)
    repeated = any(len(group) > 1 for group in together.values())
    head: list[Column] = [Column(key.replace("_", " "), True) for key in named] or [Column("row", True)]
    head += [Column("readings")] if repeated else []
    for key in measured:
        head += [Column(key.replace("_", " ")), *([Column("spread")] if repeated else [])]
    lines = []
    for place, group in enumerate(together.values(), start=1):
        line = [_axis(group[0].get(key)) for key in named] or [number_cell(place, str(place))]
        line += [_count(len(group))] if repeated else []
        for key in measured:
            found = summarize(value for row in group if (value := reading(row.get(key))) is not None)
            line += _summary_cells(key, found, with_spread=repeated)
        lines.append(tuple(line))
    text = "Medians; the spread is (largest - smallest) / median." if repeated else ""
    return Table("Readings", tuple(head), tuple(lines), text) if lines else None


def medians_table(medians: Mapping[str, Any]) -> Table | None:
    """What the benchmark itself says that its readings come to, name by name; None when it says nothing."""
    lines = []
    for name, value in _flat(medians):
        if isinstance(value, Summary):
            cells = [number_cell(v, value_text(name, v)) for v in (value.median, value.minimum, value.maximum)]
            lines.append((words(name), *cells, _count(value.count)))
        else:
            number = reading(value)
            shown = formats.plain(value) if number is None else value_text(name, number)
            missing = words(formats.MISSING)
            lines.append((words(name), Cell(shown, number), missing, missing, missing))
    head = columns("Name", "Median", "Smallest", "Largest", "Readings")
    return Table("What it comes to", head, tuple(lines)) if lines else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value.keys() == {"median", "minimum", "maximum", "count"}:
            yield name, Summary(value["median"], value["minimum"], value["maximum"], value["count"])
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _is_measured(key: str, values: Sequence[Any]) -> bool:
    """True for readings: numbers that have a fraction or the name of a unit, and no other kind of value beside them."""
    known = [value for value in values if value is not None]
    if not known or any(reading(value) is None for value in known):
        return False
    return key.endswith(MEASURED) or any(isinstance(value, float) for value in known)


def _any(cases: Sequence[Case], key: str) -> bool:
    return any(case.median(key) is not None for case in cases)


def _value(case: Case, key: str, *, strong: bool = False) -> Cell:
    value = case.median(key)
    text = formats.count(value) if key.endswith("_per_s") else value_text(key, value)
    return number_cell(value, text, strong=strong and value is not None)


def _axis(value: Any) -> Cell:
    return Cell(formats.MISSING if value is None else formats.plain(value), reading(value))


def _count(value: float | None) -> Cell:
    return number_cell(value, formats.count(value))


def _summary_cells(key: str, found: Summary | None, *, with_spread: bool) -> list[Cell]:
    median = None if found is None else found.median
    cells = [number_cell(median, value_text(key, median))]
    if with_spread:
        spread = None if found is None or found.count < 2 else found.spread
        cells.append(number_cell(spread, formats.percent(spread)))
    return cells
