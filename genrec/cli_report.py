"""`genrec report PATH...`: the page people read for runs and benchmarks, and what changed between two of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def report(
    paths: Annotated[
        list[Path], typer.Argument(help="run directories, benchmark results, folders of them", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option(help="the page; default: RUN/report.html for one run, else report.html here")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="the same as Markdown, to this file")] = None,
) -> None:
    """Write one self-contained HTML page on runs and benchmarks, or the same as Markdown."""
    from genrec.reporting.document_page import document_page, write_file
    from genrec.reporting.markdown import document_markdown
    from genrec.reporting.report import report_document
    from genrec.reporting.run_report import write_report
    from genrec.reporting.sources import is_run
    from genrec.run_dir import open_run

    alone = len(paths) == 1 and is_run(paths[0])
    if alone and (html or not markdown):
        directory, _ = open_run(paths[0])
        console.print(f"Report: {write_report(directory, html)}", highlight=False)
    if alone and not markdown:
        return
    document = report_document(paths)
    if not alone and (html or not markdown):
        target = html or Path("report.html")
        write_file(target, document_page(document), "--html")
        console.print(f"Report: {target}", highlight=False)
    if markdown:
        write_file(markdown, document_markdown(document), "--markdown")
        console.print(f"Report: {markdown}", highlight=False)
