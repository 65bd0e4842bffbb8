"""`genrec report --diff A B`: what changed between two runs or two results of a benchmark, beyond noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import ConfigError
from genrec.reporting import formats
from genrec.reporting.bench_cases import reading
from genrec.reporting.sources import Sources
from genrec.reporting.verdicts import Change
from genrec.run_dir import value_differences

MEMORY_TOLERANCE = 0.05  # the same machine reports a little more or less of its memory after an update
NOT_THE_MACHINE = (
    "command", "commit", "load_average_1_min", "platform", "python", "system", "time", "versions",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things that are compared."""

    name: str
    path: Path
    commit: str
    config: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed from `before` to `after`; `notes` say what could not be compared, and why."""

    before: Side
    after: Side
    threshold: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        """The changes for the worse that are no noise."""
        return [change for change in self.changes if change.is_regression]

    @property
    def other_machine(self) -> list[str]:
        """What of the two machines differs: `cores: 8 -> 2`."""
        return machine_differences(self.before.machine, self.after.machine)

    @property
    def settings(self) -> list[str]:
        """`section.field: old -> new` for every setting that differs."""
        return value_differences(self.before.config, self.after.config)

    @property
    def versions(self) -> list[str]:
        """The same for the versions, and the commit."""
        commit = {"commit": self.before.commit}, {"commit": self.after.commit}
        return value_differences(self.before.versions | commit[0], self.after.versions | commit[1])


def machine_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`cores: 8 -> 2` for what makes two machines different: processors, their number, memory, accelerators."""
    found = []
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if key in NOT_THE_MACHINE or old == new:
            continue
        sizes = reading(old), reading(new)
        if key.endswith("_bytes") and sizes[0] and sizes[1]:
            if abs(sizes[1] / sizes[0] - 1) > MEMORY_TOLERANCE:
                found.append(f"{key}: {formats.num_bytes(sizes[0])} -> {formats.num_bytes(sizes[1])}")
            continue
        found.append(f"{key}: {formats.plain(old)} -> {formats.plain(new)}")
    return found


def refuse_other_machine(diff: Diff) -> None:
    """Raises ConfigError when the two were not measured on one machine: a gate must not judge across machines."""
    if diff.other_machine:
        raise ConfigError(
            f"{diff.before.path} and {diff.after.path} were measured on different machines "
            f"({'; '.join(diff.other_machine)}), which no gate can judge; measure both on one, or add "
            "--allow-other-machine."
        )


def diff_of(sources: Sources, threshold: float, *, strict: bool) -> Diff:
    """The difference of two runs, or of two benchmark results, the first of them the base.

    `threshold` is the smallest relative change that counts. With `strict`, what cannot be compared is an error and not
    a note. Raises ConfigError unless there are exactly two of one kind.
    """
    from genrec.reporting.diff_bench import diff_results
    from genrec.reporting.diff_runs import diff_runs

    counts = (len(sources.runs), len(sources.results))
    if counts == (2, 0):
        return diff_runs(sources.runs[0], sources.runs[1], threshold, strict=strict)
    if counts == (0, 2):
        return diff_results(sources.results[0], sources.results[1], threshold, strict=strict)
    raise ConfigError(
        f"--diff needs two different runs or benchmark results, not {counts[0]} runs and {counts[1]} results; name the "
        "base first, then what is held against it."
    )
