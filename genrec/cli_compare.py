"""`genrec compare RUN RUN ...`: runs side by side, or why they cannot be."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

console = Console()


def compare(
    runs: Annotated[list[Path], typer.Argument(help="runs, or their evaluation-served.json", show_default=False)],
    split: Annotated[Literal["validation", "test"], typer.Option(help="which result to compare")] = "test",
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Compare runs, each with the first, over the same users; exit code 2 when their protocols differ."""
    from genrec.reporting.compare_console import comparison_summary
    from genrec.reporting.compare_page import write_comparison_page
    from genrec.reporting.comparison import compare_runs, comparison_json

    comparison = compare_runs(runs, split)
    if html:
        write_comparison_page(comparison, html)
    if as_json:
        print(json.dumps(comparison_json(comparison)))
        return
    console.print(comparison_summary(comparison), highlight=False)
    if html:
        console.print(f"Page: {html}", highlight=False)
