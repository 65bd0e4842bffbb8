"""Cases of a benchmark that differ in their number of workers: how far they are from the ideal, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from genrec.reporting import formats
from genrec.reporting.bench_cases import STEP_PARTS, Case, reading, short_name
from genrec.reporting.document import Cell, Table, columns, number_cell, words

STEP_SIZE = ("batch.tokens_per_step", "batch.micro_batches_per_step")
SMALL = 0.005  # of a step: a loss below it is not told


@dataclass(frozen=True, slots=True)
class Loss:
    """One part of a step: its seconds in an ideal step and as measured, and the loss as a part of the measured step.

    The losses of all parts add up to what the efficiency lacks of 1; a part that became faster has a loss below 0.
    """

    part: str
    ideal_s: float
    measured_s: float
    lost: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """Cases that differ in their number of workers alone, by rising number."""

    label: str
    cases: tuple[Case, ...]

    @property
    def speedups(self) -> tuple[float, ...]:
        """Throughput of the most workers over that of the fewest, in each round where both were measured in all.

        A machine whose speed drifts from round to round disturbs these less than the ratio of two medians.
        """
        few, many = (case.readings["events_per_s"] for case in (self.cases[0], self.cases[-1]))
        if len(few) == len(many) and all(few) and self.cases[0].is_ok and self.cases[-1].is_ok:
            return tuple(after / before for before, after in zip(few, many, strict=True))
        return ((self.cases[-1].median("events_per_s") or 0.0) / (self.cases[0].median("events_per_s") or 1.0),)

    @property
    def efficiency(self) -> float:
        """Throughput of the most workers as a part of what the fewest would give, times as many."""
        return self.efficiency_of(self.speedup)

    @property
    def speedup(self) -> float:
        """Throughput of the most workers over that of the fewest: the median of the rounds."""
        return median(self.speedups)

    def efficiency_of(self, speedup: float) -> float:
        """A speedup as a part of the ideal one."""
        return speedup * (self.cases[0].workers or 1) / (self.cases[-1].workers or 1)

    @property
    def losses(self) -> tuple["Loss", ...]:
        """What the most workers lose against the ideal, by part of a step; empty where steps were not timed by part.

        An ideal step has, for each part, the seconds that the fewest workers give it, times the work of a worker beside
        theirs. Differences are taken within each round, as `speedups` are, and their medians told.
        """
        few, many = self.cases[0], self.cases[-1]
        rounds = _rounds(few, many)
        if not rounds:
            return ()
        found = []
        for part in STEP_PARTS:
            key = f"{part}_s"
            ideal = [share * before.get(key, 0.0) for before, _, share in rounds]
            seen = [after.get(key, 0.0) for _, after, _ in rounds]
            lost = [(b - a) / after["step_s"] for a, b, (_, after, _) in zip(ideal, seen, rounds, strict=True)]
            found.append(Loss(part, median(ideal), median(seen), median(lost)))
        return tuple(one for one in found if one.ideal_s or one.measured_s)


def scalings(cases: Sequence[Case]) -> list[Scaling]:
    """The sets of cases that scale over workers, the fastest at its most workers first.

    They differ in their number of workers alone; where there are none, in that and in a step that grows with it.
    """
    return _scalings(cases, same_step=True) or _scalings(cases, same_step=False)


def _others(case: Case, same_step: bool) -> tuple[tuple[str, str], ...]:
    """What must be alike in cases that scale: all but the workers; the step as a whole, or a worker's share of it."""
    settings = {key: value for key, value in case.axes.items() if key != "cluster.workers"}
    if not same_step:
        sizes = {key: reading(settings.get(key)) for key in STEP_SIZE}
        settings |= {key: size / (case.workers or 1) for key, size in sizes.items() if size is not None}
    return tuple((key, str(value)) for key, value in settings.items())


def _scalings(cases: Sequence[Case], *, same_step: bool) -> list[Scaling]:
    sets: dict[tuple[tuple[str, str], ...], dict[int, Case]] = {}
    for case in cases:
        if case.mode == "full" and case.workers and case.median("events_per_s"):
            sets.setdefault(_others(case, same_step), {}).setdefault(case.workers, case)
    scaling = {others: by_workers for others, by_workers in sets.items() if len(by_workers) > 1}
    values: dict[str, set[str]] = {}
    for name, value in (axis for others in scaling for axis in others):
        values.setdefault(name, set()).add(value)
    found = []
    for others, by_workers in scaling.items():
        # Only what tells one curve from another.
        label = ", ".join(f"{short_name(name)} {value}" for name, value in others if len(values[name]) > 1)
        alike = "all settings alike" if same_step else "equal work for each worker"
        found.append(Scaling(label or alike, tuple(by_workers[n] for n in sorted(by_workers))))
    return sorted(found, key=lambda scaling: -(scaling.cases[-1].median("events_per_s") or 0.0))


def _rounds(few: Case, many: Case) -> list[tuple[dict[str, float], dict[str, float], float]]:
    """Of each round the seconds of both cases by key, and the work of a worker in the second beside the first.

    One round of medians where the two were not read alike; none where a step's time or its events are not known.
    """
    keys = ["step_s", "events_per_s", *(f"{part}_s" for part in STEP_PARTS)]
    if not any(few.readings.get(key) and many.readings.get(key) for key in keys[2:]):
        return []
    counts = {len(case.readings[key]) for case in (few, many) for key in keys if key in case.readings}
    if len(counts) == 1 and few.is_ok and many.is_ok:
        sides = [
            [{key: case.readings[key][place] for key in keys if key in case.readings} for place in range(max(counts))]
            for case in (few, many)
        ]
    else:
        sides = [[{key: case.median(key) or 0.0 for key in keys if key in case.values}] for case in (few, many)]
    found = []
    for before, after in zip(*sides, strict=True):
        if not all(side.get(key) for side in (before, after) for key in keys[:2]):
            return []
        work = (after["events_per_s"] * after["step_s"]) / (before["events_per_s"] * before["step_s"])
        found.append((before, after, work * (few.workers or 1) / (many.workers or 1)))
    return found


def loss_table(found: Scaling) -> Table | None:
    """Where the rest of the throughput went, by part of a step; None where steps were not timed by part."""
    if not found.losses:
        return None
    few, many = found.cases[0].workers, found.cases[-1].workers
    lines = [(words(_spoken(one.part)), _ms(one.ideal_s), _ms(one.measured_s), _lost(one.lost)) for one in found.losses]
    step = sum(one.ideal_s for one in found.losses), sum(one.measured_s for one in found.losses)
    lost = sum(one.lost for one in found.losses)
    whole = (Cell("all", strong=True), *(_ms(value, strong=True) for value in step), _lost(lost, strong=True))
    head = columns("Part of a step", f"Ideal, from {few}", f"With {many}", "Lost of the step")
    text = (
        f"Setting: {found.label}. Ideal is the time with {_workers(few)} for the same work of a worker; what is beyond "
        f"it is lost, told as a part of the step with {_workers(many)} and taken within each round. Forward and "
        "backward lose where workers share a memory or a processor's clock; communication includes waiting for the "
        "slowest worker."
    )
    return Table(f"Where the rest goes from {few} to {_workers(many)}", head, (*lines, whole), text)


def loss_sentence(found: Scaling) -> str:
    """` Of a step with 2 workers 8.0% is lost in communication, ...`; empty where nothing is known or lost."""
    lost = sorted((one for one in found.losses if one.lost > SMALL), key=lambda one: -one.lost)
    if not lost:
        return ""
    first, *others = (f"{formats.percent(one.lost)} {{}}in {_spoken(one.part)}" for one in lost[:4])
    named = ", ".join([first.format("is lost "), *(other.format("") for other in others)])
    return f" Of a step with {found.cases[-1].workers} workers {named}."


def _workers(number: int | None) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _spoken(part: str) -> str:
    return part.replace("_", " ")


def _ms(seconds: float, *, strong: bool = False) -> Cell:
    return number_cell(seconds, f"{formats.number(1e3 * seconds, 3)} ms", strong=strong)


def _lost(value: float, *, strong: bool = False) -> Cell:
    return number_cell(value, formats.percent(value), strong=strong)
