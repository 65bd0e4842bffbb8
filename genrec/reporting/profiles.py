"""Where the time of a step goes in real runs: what `genrec train --profile` left behind (training/profile.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrec.reporting import formats
from genrec.reporting.bars import MAX_BARS, Bar, stacked_bars
from genrec.reporting.bench_cases import STEP_PARTS, reading
from genrec.reporting.document import Cell, Section, Table, columns, number_cell, words
from genrec.reporting.plots import Chart
from genrec.reporting.runs_read import read_object
from genrec.run_dir import RunDir

BREAKDOWN = "profile/breakdown.json"
TITLE = "Where the time of a step goes"


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a step by part: the mean of the workers, and each worker's own."""

    first_step: int
    num_steps: int
    mean: dict[str, float]
    of_workers: tuple[dict[str, float], ...]

    @property
    def step_s(self) -> float:
        """Seconds of a step: all of its parts."""
        return sum(self.mean.values())


def read_profile(run: RunDir) -> Profile | None:
    """The profile of a run; None where it has none. Raises DataError when the file is damaged."""
    told = read_object(run.root / BREAKDOWN)
    mean = _parts(told)
    if not sum(mean.values()):
        return None
    workers = told.get("of_workers")
    found = [_parts(one) for one in workers if isinstance(one, Mapping)] if isinstance(workers, list) else []
    numbers = [reading(told.get(key)) for key in ("first_step", "num_steps")]
    first, steps = (0 if number is None else int(number) for number in numbers)
    return Profile(first, steps, mean, tuple(found))


def profile_section(profile: Profile | None) -> Section | None:
    """The section of one run: a bar for each worker, and a line for each part; None without a profile."""
    if profile is None:
        return None
    bars = {f"worker {place}": parts for place, parts in enumerate(profile.of_workers)} or {"a step": profile.mean}
    largest = max(profile.mean, key=lambda part: profile.mean[part])
    text = (
        f"Measured over {formats.count(profile.num_steps)} steps from step {formats.count(profile.first_step + 1)} on "
        f"(--profile); {formats.percent(profile.mean[largest] / profile.step_s)} of a step is {_spoken(largest)}. A "
        "worker that waits for a slower one waits in communication."
    )
    return Section(
        "profile", "Profile", text=(text,), charts=(profile_chart(bars, profile.step_s),), tables=(_table(profile),)
    )


def profile_chart(bars: Mapping[str, Mapping[str, float]], step_s: float) -> Chart:
    """A bar for each worker or run: the seconds of its parts; `step_s` is told beside the title."""
    shown = [
        Bar(label, {_spoken(part): 1e3 * seconds for part, seconds in parts.items() if seconds})
        for label, parts in bars.items()
    ]
    value = f"{formats.number(1e3 * step_s, 3)} ms a step"
    caption = "Milliseconds of each part, means over the measured steps."
    if len(shown) > MAX_BARS:
        caption += f" The first {MAX_BARS} of {len(shown)}."
    svg = stacked_bars(
        "profile-step",
        shown,
        description=f"{TITLE}, {value}. {caption}",
        value_format=lambda value: f"{value:,.4g}",
        order=[_spoken(part) for part in STEP_PARTS],
    )
    return Chart(TITLE, value, caption, svg)


def _table(profile: Profile) -> Table:
    """A line for each part that takes time: the mean, its share, and the workers with least and most of it."""
    head = columns("Part of a step", "Mean", "Share", "Least of a worker", "Most of a worker")
    lines = []
    for part, mean in profile.mean.items():
        own = [parts[part] for parts in profile.of_workers] or [mean]
        if any(own):
            share = mean / profile.step_s
            cells = (_ms(mean, strong=True), number_cell(share, formats.percent(share)), _ms(min(own)), _ms(max(own)))
            lines.append((words(_spoken(part)), *cells))
    return Table("", head, tuple(lines))


def profiled(runs: Sequence[tuple[str, RunDir]]) -> Chart | None:
    """One bar for each named run that has a profile; None where none has."""
    found = {name: profile for name, run in runs if (profile := read_profile(run)) is not None}
    if not found:
        return None
    return profile_chart({name: one.mean for name, one in found.items()}, max(one.step_s for one in found.values()))


def _parts(told: Mapping[str, object]) -> dict[str, float]:
    """`forward` and so on with their seconds; 0 for a part that is not there."""
    return {part: max(0.0, reading(told.get(f"{part}_s")) or 0.0) for part in STEP_PARTS}


def _spoken(part: str) -> str:
    return part.replace("_", " ")


def _ms(seconds: float, *, strong: bool = False) -> Cell:
    return number_cell(seconds, f"{formats.number(1e3 * seconds, 3)} ms", strong=strong)
