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
