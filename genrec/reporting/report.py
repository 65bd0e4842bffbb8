"""`genrec report PATH...`: runs and benchmarks on one page, as HTML or as Markdown."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from genrec.reporting.bench_sections import Told, bench_told
from genrec.reporting.document import Document, Section
from genrec.reporting.runs_sections import runs_told
from genrec.reporting.sources import Sources, read_sources


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
    again = Section("report-again", "Write this report again", commands=(command,))
    return Document(
        kind="report",
        title=_title(sources),
        lead=_lead(sources),
        summary=tuple(sentence for part in told for sentence in part.summary),
        figures=next((part.figures for part in told if part.figures), ()),
        sections=(*(section for part in told for section in part.sections), again),
        alerts=tuple(alert for part in told for alert in part.alerts),
    )


def _told(name: str, told: Told, sources: Sources) -> Told:
    """The same; where there is more than one source, its sentences begin with the name of the benchmark."""
    if len(sources.results) + bool(sources.runs) == 1:
        return told
    named = tuple(text if text.startswith(f"{name}: ") else f"{name}: {text}" for text in told.summary)
    return Told(named, told.figures, told.sections, told.alerts)


def _title(sources: Sources) -> str:
    names = [path.name for path in sources.runs] + [source.result.name for source in sources.results]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lead(sources: Sources) -> str:
    parts = [(len(sources.runs), "run"), (len(sources.results), "benchmark")]
    return " and ".join(f"{number} {word}{'s' if number > 1 else ''}" for number, word in parts if number)
