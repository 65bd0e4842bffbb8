"""The sections of one benchmark's result: what it says, its figures and tables, what it ran on, how to run it again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from genrec.bench.result import Result
from genrec.reporting import formats, tables
from genrec.reporting.bench_cases import is_training, reading, training_cases
from genrec.reporting.bench_charts import training_charts
from genrec.reporting.bench_scaling import loss_table, scalings
from genrec.reporting.bench_summary import training_figures, training_summary
from genrec.reporting.bench_tables import (
    case_table,
    failed_table,
    foreseen_table,
    medians_table,
    rows_table,
    step_table,
)
from genrec.reporting.bench_words import what_was_measured
from genrec.reporting.document import Section
from genrec.reporting.tables import Group, Row

BUSY = 1.5  # times the cores: a load above it disturbs
MAX_BUSY = 4  # results that are named
MAX_NAMED = 3  # medians in the sentence of a benchmark of any kind


@dataclass(frozen=True, slots=True)
class Told:
    """What one source gives to a report; its `details` stand behind the sections of all sources."""

    summary: tuple[str, ...]
    figures: tuple[Row, ...]
    sections: tuple[Section, ...]
    alerts: tuple[str, ...] = ()
    details: tuple[Section, ...] = ()


def bench_told(result: Result, path: str, *, prefix: str) -> Told:
    """What the result at `path` gives to a report; the ids of its sections begin with `prefix`."""
    training = is_training(result)
    cases = training_cases(result.rows) if training else []
    if training:
        lost = [loss_table(one) for one in scalings(cases)[:1]]  # of the setting that the summary names
        shown = [case_table(cases), *lost, step_table(cases), foreseen_table(cases), failed_table(cases)]
    else:
        shown = [rows_table(result.rows), medians_table(result.medians)]
    about = (
        *what_was_measured(result, cases),
        f"Finished {finished(result)} at commit {result.commit}, {len(result.rows)} rows, from `{path}`.",
        *(("The file has no rows: nothing was measured.",) if not result.rows else ()),
    )
    main = Section(
        id=f"{prefix}-results",
        title=result.name,
        text=about,
        charts=tuple(training_charts(prefix, cases)),
        tables=tuple(table for table in shown if table is not None),
    )
    groups = tables.environment_groups({"machine": _machine(result.machine), "versions": result.versions})
    setting = tables.environment_groups({"settings": result.config}) if result.config else []
    environment = Section(
        id=f"{prefix}-environment",
        title=f"How {result.name} was measured",
        groups=tuple(groups),
        folded=tuple(_short(setting)),
        commands=commands(result),
    )
    summary = training_summary(cases) if training else [_generic_sentence(result)]
    return Told(
        summary=tuple(summary),
        figures=tuple(training_figures(cases)) if training else (),
        sections=(main,),
        alerts=tuple(mixed_alert(result)),
        details=(environment,),
    )


def _machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its memory in GiB."""
    size = reading(facts.get("memory_bytes"))
    return {**facts, "memory_bytes": formats.num_bytes(size)} if size else dict(facts)


def finished(result: Result) -> str:
    """The moment that the benchmark was finished, to the minute."""
    return re.sub(r"^(\S{10})T(\d\d:\d\d).*$", r"\1 \2 UTC", result.finished)


def commands(result: Result) -> tuple[str, ...]:
    """The commands that measure the same again: what the result itself says, else the script of its name."""
    commit = result.commit.removesuffix("-dirty")
    first = [f"git checkout {commit}"] if re.fullmatch(r"[0-9a-f]{7,40}", commit) else []
    if result.commit.endswith("-dirty"):
        first[-1:] = [f"{first[-1]}    # and the changes that were not committed"] if first else []
    command = result.config.get("command")
    if isinstance(command, list):
        command = " ".join(str(part) for part in command)
    if command:
        return (*first, str(command))
    if is_training(result) and {"base", "axes"} <= result.config.keys():
        return (*first, *_matrix_commands(result))
    return (*first, f"python benchmarks/{result.name}.py    # its options: the settings above")


def _matrix_commands(result: Result) -> list[str]:
    """The matrix that `genrec bench` has echoed into its result, as a file, and the command that measures it."""
    matrix = {key: value for key, value in result.config.items() if key != "launcher" and value not in (None, [], {})}
    file, launcher = f"{result.name}.yaml", result.config.get("launcher")
    text = yaml.safe_dump(matrix, sort_keys=False, default_flow_style=None, width=100).rstrip()
    return [
        f"cat > {file} <<'END'",
        text,
        "END",
        f"genrec bench {file}" + (f" --launcher {launcher}" if launcher else ""),
    ]


def busy_alert(results: Sequence[Result]) -> list[str]:
    """A warning when the machine had more to do than it has cores, one for all results."""
    loads = [
        (one.name, reading(one.machine.get("load_average_1_min")), reading(one.machine.get("cores"))) for one in results
    ]
    busy = [(name, load, cores) for name, load, cores in loads if load and cores and load > BUSY * cores]
    if not busy:
        return []
    named = ", ".join(f"{name} (a load of {load:.1f} on {cores:.0f} cores)" for name, load, cores in busy[:MAX_BUSY])
    more = f" and {len(busy) - MAX_BUSY} more" if len(busy) > MAX_BUSY else ""
    return [
        f"The machine was busy with other work while it measured {named}{more}. Speeds and times say little then, "
        "because that took part of the cores; memory is not touched by it."
    ]


def mixed_alert(result: Result) -> list[str]:
    """A warning when the rows were measured on machines of several kinds, which Ray may choose among."""
    kinds = sorted({str(row["machine"]) for row in result.rows if row.get("machine")})
    if len(kinds) < 2:
        return []
    return [
        f"The cases of {result.name} were measured on {len(kinds)} kinds of machines ({'; '.join(kinds)}): compare "
        "speeds of one kind only."
    ]


def _generic_sentence(result: Result) -> str:
    text = f"{result.name}: {formats.count(len(result.rows))} rows"
    found = medians_table(result.medians)
    named = [] if found is None else [(line[0].text, line[1].text) for line in found.lines if line[1].sort is not None]
    for name, value in named[:MAX_NAMED]:
        text += f"; {name.replace('_', ' ')} {value}"
    return text + "."


def _short(groups: list[Group]) -> list[Group]:
    """Settings without nulls and empty values: what was left alone says nothing."""
    kept = [
        Group(g.title, g.hint, tuple(row for row in g.rows if row.value not in ("null", "{}", "[]"))) for g in groups
    ]
    return [group for group in kept if group.rows]
