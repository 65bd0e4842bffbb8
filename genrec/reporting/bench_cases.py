"""The rows of a benchmark of training (`genrec bench`) as cases: repetitions together, each value with its spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrec.bench.result import Result, Row, Summary, summarize

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "item_table", "communication", "runtime")
STEP_PARTS = ("data_wait", "to_device", "forward", "backward", "communication", "optimizer", "hooks", "other")
OK = "ok"


@dataclass(frozen=True, slots=True)
class Case:
    """All repetitions of one case in one mode.

    `axes` are the settings that the benchmark varied, by their dotted names; `status` is the worst of the repetitions,
    and `error` what it said; `mfu_of` says of what rate the model FLOPs utilisation is a part; `values` hold what was
    read, by the key of the row, over the repetitions that went well.
    """

    name: str
    mode: str
    axes: dict[str, Any]
    workers: int | None
    status: str
    error: str
    mfu_of: str
    values: dict[str, Summary]
    readings: dict[str, tuple[float, ...]]

    @property
    def is_ok(self) -> bool:
        """True when every repetition went well."""
        return self.status == OK

    @property
    def label(self) -> str:
        """The name, and the mode where it is not the usual one."""
        return self.name if self.mode == "full" else f"{self.name}, {self.mode}"

    def median(self, key: str) -> float | None:
        """The median of a reading; None when it was not read."""
        found = self.values.get(key)
        return None if found is None else found.median


@dataclass(frozen=True, slots=True)
class CaseLabels:
    """Short names of cases for figures: the values of the settings in which they differ, or their whole names.

    `explained` is the sentence that says which settings the values are of; it is empty where names are whole.
    """

    varied: tuple[str, ...]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "CaseLabels":
        """The labels that tell these cases apart; whole names where settings do not, or where somebody gave names."""
        axes = list(dict.fromkeys(key for case in cases for key in case.axes))
        varied = tuple(axis for axis in axes if len({str(case.axes.get(axis)) for case in cases}) > 1)
        told = {(case.mode, *(str(case.axes.get(axis)) for axis in varied)) for case in cases}
        made = all("=" in case.name for case in cases)  # by the matrix, from the settings
        return cls(varied if made and len(varied) > 1 and len(told) == len(cases) else ())

    def __getitem__(self, case: Case) -> str:
        if not self.varied:
            return case.label
        values = [str(case.axes.get(axis, "-")) for axis in self.varied]
        return " · ".join(values if case.mode == "full" else [*values, case.mode])

    @property
    def explained(self) -> str:
        """ " Cases by dim and zero_stage.", to end a caption with."""
        names = [short_name(axis) for axis in self.varied]
        return f" Cases by {', '.join(names[:-1])} and {names[-1]}." if names else ""


def short_name(setting: str) -> str:
    """The last part of a setting's dotted name: `dim` of `model.dim`, but `model` of `model.name`."""
    section, _, last = setting.rpartition(".")
    return section.rpartition(".")[2] if last == "name" and section else last


def is_training(result: Result) -> bool:
    """True when the rows are those of `genrec bench`: cases with a status."""
    return bool(result.rows) and all("case" in row and "status" in row for row in result.rows)


def training_cases(rows: Sequence[Row]) -> list[Case]:
    """The cases in the order of the rows."""
    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        together.setdefault((str(row.get("case")), str(row.get("mode") or "full")), []).append(row)
    return [_case(name, mode, group) for (name, mode), group in together.items()]


def reading(value: Any) -> float | None:
    """A JSON number as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _case(name: str, mode: str, rows: Sequence[Row]) -> Case:
    bad = [row for row in rows if row.get("status") != OK]
    good = [row for row in rows if row.get("status") == OK]
    first = rows[0]
    axes = {key: value for key, value in first.items() if "." in key}
    workers = reading(first.get("workers", first.get("cluster.workers")))
    readings = {}
    for key in dict.fromkeys(key for row in good for key in row):
        found = [value for row in good if (value := reading(row.get(key))) is not None]
        if found and key not in axes and key not in ("repetition", "workers"):
            readings[key] = tuple(found)
    return Case(
        name=name,
        mode=mode,
        axes=axes,
        workers=None if workers is None else int(workers),
        status=str(bad[0].get("status") or "failed") if bad else OK,
        error=str(bad[0].get("error") or "") if bad else "",
        mfu_of=next((str(row["mfu_of"]) for row in good if row.get("mfu_of")), ""),
        values={key: total for key, values in readings.items() if (total := summarize(values)) is not None},
        readings=readings,
    )
