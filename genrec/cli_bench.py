"""`genrec bench`: measures the cases of a matrix."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bench(
    file: Annotated[Path, typer.Argument(help="YAML file with the matrix", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="matrix_setting=value, as repetitions=3", show_default=False)
    ] = None,
    launcher: Annotated[
        Literal["ray", "local"], typer.Option(help="ray: side by side on a cluster; local: one after another, here")
    ] = "ray",
    output: Annotated[Path | None, typer.Option(help="result; default: benchmarks/out/NAME.json")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what has been measured already")] = False,
) -> None:
    """Measure speed, memory and utilisation of every case of a matrix; run it again to go on after a stop."""
    from genrec.bench.console import case_line, result_table
    from genrec.bench.result import Row
    from genrec.bench.runner import run_matrix

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as view:
        task = view.add_task("prepare", total=None)

        def watch(done: int, total: int, row: Row | None) -> None:
            view.update(task, description="measure", completed=done, total=total)
            if row is not None:
                view.console.print(case_line(row), highlight=False)
            elif done:
                view.console.print(f"{done} of {total} were measured before", highlight=False)

        def preparing(phase: str, done: float, total: float) -> None:
            view.update(task, description=f"prepare: {phase}", completed=done, total=total)

        result, path = run_matrix(
            file, overrides, launcher=launcher, output=output, fresh=fresh, watch=watch, progress=preparing
        )
    console.print(result_table(result))
    console.print(f"Result: {path}", highlight=False)
