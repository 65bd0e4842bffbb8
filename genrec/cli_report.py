"""`genrec report PATH...`: the page people read for runs and benchmarks, and what changed between two of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from genrec.errors import ConfigError
from genrec.run_dir import RunDir, run_dir_at

if TYPE_CHECKING:
    from genrec.reporting.document import Document

console = Console()


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="run directories, benchmark results, folders of them; or a sweep's folder", show_default=False
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(help="the page; default: RUN/report.html for one run, else report.html here")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="the same as Markdown, to this file")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="what changed from the first path to the second")] = False,
    threshold: Annotated[float, typer.Option(min=0, help="with --diff: smallest change that counts, percent")] = 5.0,
    gate: Annotated[bool, typer.Option("--gate", help="with --diff: exit code 1 on a regression")] = False,
    allow_other_machine: Annotated[
        bool, typer.Option("--allow-other-machine", help="with --gate: judge also across machines")
    ] = False,
) -> None:
    """Write one self-contained HTML page on runs and benchmarks, or the same as Markdown; or say what changed."""
    runs = [run_dir_at(path) for path in paths]
    for run in runs:
        run.pull()
    paths = [run.root for run in runs]
    if diff:
        _diff(paths, html, markdown, threshold / 100, gate=gate, allow_other_machine=allow_other_machine)
    elif gate or allow_other_machine:
        raise ConfigError("--gate and --allow-other-machine judge a difference; add --diff and name two paths.")
    else:
        _report(paths, html, markdown)
    for run in runs:
        run.push()


def _report(paths: list[Path], html: Path | None, markdown: Path | None) -> None:
    from genrec.reporting.report import report_document
    from genrec.reporting.run_report import write_report
    from genrec.reporting.sources import is_run
    from genrec.reporting.sweep_record import is_sweep
    from genrec.reporting.sweep_report import write_sweep_report

    if len(paths) == 1 and is_sweep(paths[0]) and not markdown:
        console.print(f"Report: {write_sweep_report(paths[0], html)}", highlight=False)
        return
    if len(paths) == 1 and is_run(paths[0]):
        if html or not markdown:
            console.print(f"Report: {write_report(RunDir(paths[0]), html)}", highlight=False)
        if markdown:
            _write(report_document(paths), None, markdown)
        return
    _write(report_document(paths), html or (None if markdown else Path("report.html")), markdown)


def _diff(
    paths: list[Path],
    html: Path | None,
    markdown: Path | None,
    threshold: float,
    *,
    gate: bool,
    allow_other_machine: bool,
) -> None:
    from genrec.reporting.diff import diff_of, refuse_other_machine
    from genrec.reporting.diff_document import diff_document, diff_summary
    from genrec.reporting.sources import read_sources

    found = diff_of(read_sources(paths), threshold, strict=gate)
    if gate and not allow_other_machine:
        refuse_other_machine(found)
    _write(diff_document(found), html, markdown)
    if not gate:
        console.print(diff_summary(found), highlight=False)
        return
    for note in found.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for regression in found.regressions:
        console.print(f"regression: {regression.sentence}", highlight=False, markup=False, soft_wrap=True)
    if found.regressions:
        raise typer.Exit(1)
    console.print(f"No regression in {len(found.changes)} numbers.", highlight=False)


def _write(document: "Document", html: Path | None, markdown: Path | None) -> None:
    from genrec.reporting.document_page import document_page, write_file
    from genrec.reporting.markdown import document_markdown

    if html:
        write_file(html, document_page(document), "--html")
        console.print(f"Report: {html}", highlight=False)
    if markdown:
        write_file(markdown, document_markdown(document), "--markdown")
        console.print(f"Report: {markdown}", highlight=False)
