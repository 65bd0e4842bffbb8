"""`genrec report PATH...`: runs and benchmarks on one page, as HTML or as Markdown."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genrec.reporting import formats
from genrec.reporting.bench_cases import is_training, training_cases
from genrec.reporting.bench_sections import Told, bench_told, busy_alert
from genrec.reporting.bench_summary import CASES
from genrec.reporting.bench_words import words_section
from genrec.reporting.document import Document, Section
from genrec.reporting.runs_sections import runs_told
from genrec.reporting.sources import Sources, read_sources

GENREC = "models that recommend the next item from what somebody played, watched or bought"


def report_document(paths: Sequence[Path]) -> Document:
    """The report on everything at these paths.

    Raises DataError for a path that is neither a run nor a benchmark's result, and for a damaged file.
    """
    sources = read_sources(paths)
    told = [_told(source.result.name, bench_told(source.result, str(source.path), prefix=f"bench-{place}"), sources)
            for place, source in enumerate(sources.results, start=1)]  # fmt: skip
    if sources.runs:
        told.insert(0, runs_told(sources.runs))
    command = "genrec report " + " ".join(shlex.quote(str(path)) for path in paths)
    cases = [
        case for source in sources.results if is_training(source.result) for case in training_cases(source.result.rows)
    ]
    words = [section for section in (words_section(cases),) if section is not None]
    again = Section("report-again", "Write this report again", commands=(command,))
    return Document(
        kind="report",
        title=_title(sources),
        lead=_lead(sources),
        summary=tuple(sentence for part in told for sentence in part.summary),
        figures=tuple(figure for part in told for figure in part.figures),
        sections=(
            *words,
            *(section for part in told for section in part.sections),
            *(section for part in told for section in part.details),
            again,
        ),
        alerts=(
            *busy_alert([source.result for source in sources.results]),
            *(alert for part in told for alert in part.alerts),
        ),
    )


def _told(name: str, told: Told, sources: Sources) -> Told:
    """The same; where there is more than one source, its sentences and figures say which of them they are of."""
    if len(sources.results) + bool(sources.runs) == 1:
        return told
    named = tuple(text if text.startswith(f"{name}: ") else f"{name}: {text}" for text in told.summary)
    figures = tuple(replace(row, hint=f"{name}: {row.hint}") for row in told.figures)
    return replace(told, summary=named, figures=tuple(row for row in figures if row.name != CASES))


def _title(sources: Sources) -> str:
    """The names of the first three; a page of benchmarks says that it is one."""
    names = [path.name for path in sources.runs] + [source.result.name for source in sources.results]
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return text if sources.runs else f"Benchmarks: {text}" if len(names) > 1 else f"Benchmark: {text}"


def _lead(sources: Sources) -> str:
    """How many of what; benchmarks of one machine name it."""
    parts = [(len(sources.runs), "run"), (len(sources.results), "benchmark")]
    text = " and ".join(f"{number} {word}{'s' if number > 1 else ''}" for number, word in parts if number)
    machines = {_machine(source.result.machine) for source in sources.results}
    return text if sources.runs or len(machines) > 1 else f"{text} of genrec, which trains {GENREC}{machines.pop()}"


def _machine(machine: Mapping[str, Any]) -> str:
    """`; on 2 cores, AMD EPYC, 23.5 GiB`: what is known of it."""
    cores, memory, gpu = (machine.get(key) for key in ("cores", "memory_bytes", "gpu"))
    facts = [
        f"{cores} cores" if cores else "",
        machine.get("processor"),
        gpu,
        formats.num_bytes(memory) if memory else "",
    ]
    known = [str(fact) for fact in facts if fact]
    return f"; measured on {', '.join(known)}" if known else ""
