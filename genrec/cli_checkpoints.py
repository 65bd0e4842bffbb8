"""`genrec checkpoints RUN`: lists, verifies, compares and exports the checkpoints of a run."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError
from genrec.reporting import formats
from genrec.run_dir import open_run
from genrec.training.checkpoint_list import CheckpointRow, checkpoint_rows, find_checkpoint
from genrec.training.checkpoint_store import store_of
from genrec.training.validations import read_results

if TYPE_CHECKING:
    from genrec.training.checkpoint_tools import WeightDifference  # imports torch

_NUM_WEIGHTS_SHOWN = 12
_YEAR = len("2026-")  # a table of 80 columns has no room for it
_STYLE_OF = {"counts": "green", "damaged": "bold red", "unfinished": "yellow"}

console = Console()


def checkpoints(
    run: Annotated[Path, typer.Argument(help="run directory, as `genrec train` printed it", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="read every file; exit code 1 when one is damaged")] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="what differs between two: steps, `latest`, or checkpoints of other runs by folder or URI"),
    ] = None,
    export: Annotated[str | None, typer.Option(help="publish one: a step, or `latest`")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the export; default: in the run")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing export")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """List the checkpoints of a run; verify them, compare two, or export one for recommending."""
    if verify + (compare is not None) + (export is not None) > 1:
        raise ConfigError("--verify, --compare and --export are three things; give one of them.")
    if export is None and (output is not None or overwrite):
        raise ConfigError("--output and --overwrite say where an export goes; add --export STEP.")
    if compare is not None:
        _compare(run, compare, as_json)
    elif export is not None:
        _export(run, export, output, overwrite=overwrite, as_json=as_json)
    else:
        _list(run, verify=verify, as_json=as_json)


def _list(run: Path, *, verify: bool, as_json: bool) -> None:
    directory, experiment = open_run(run)
    with console.status("reading every file") if verify and not as_json else nullcontext():
        rows = checkpoint_rows(
            store_of(experiment, directory), digests=verify, results=read_results(directory.validations_path)
        )
    passes = _passes(experiment, rows)
    if as_json:
        told = [row.to_json() for row in rows]
        print(json.dumps(told if passes is None else [{**row, "passes": passes[row["step"]]} for row in told]))
    elif not rows:
        console.print(f"{directory.root} has no checkpoints.", highlight=False)
    else:
        console.print(_table(rows, experiment.evaluation.metric, verified=verify))
        if passes is not None:
            parts = ", ".join(f"{name} {formats.number(done)}" for name, done in passes[rows[-1].step].items())
            console.print(f"Passes through the parts of the mixture at step {rows[-1].step:,}: {parts}.")
        for row in rows:
            if row.problem is not None:
                console.print(Text(f"{row.name} is {row.status}: {row.problem}."), soft_wrap=True)
    if verify and any(row.status == "damaged" for row in rows):
        raise typer.Exit(1)


def _passes(experiment: ExperimentConfig, rows: list[CheckpointRow]) -> dict[int, dict[str, float]] | None:
    """How often each part of a mixture was passed through at every checkpoint's step; None where nothing is mixed."""
    from genrec.data.plan import make_plan

    if experiment.sequence.mix is None or not rows:
        return None
    plan = make_plan(experiment)
    return {row.step: plan.cursors(row.step) for row in rows}


def _table(rows: list[CheckpointRow], metric: str, *, verified: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("Step", "Epoch", formats.metric_name(metric), "Best", "Size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Workers", no_wrap=True)
    table.add_column("UTC", no_wrap=True)
    table.add_column("Verified" if verified else "Status", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.step:,}",
            formats.number(row.epoch),
            formats.metric(row.metric),
            formats.metric(row.best_metric),
            formats.num_bytes(row.num_bytes),
            formats.MISSING if row.engine is None else f"{row.workers} × {row.engine}",
            formats.moment(row.time_s)[_YEAR:].removesuffix(" UTC"),
            Text(row.status, _STYLE_OF[row.status]),
        )
    return table


def _compare(run: Path, words: tuple[str, str], as_json: bool) -> None:
    from genrec.training.checkpoint_tools import compare_checkpoints

    directory, experiment = open_run(run)
    first, second = (find_checkpoint(store_of(experiment, directory), word) for word in words)
    with nullcontext() if as_json else console.status("comparing"):
        found = compare_checkpoints(first, second)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    console.print(f"{first} -> {second}", highlight=False, soft_wrap=True)
    for title, texts in (
        ("Progress", found.progress),
        ("Settings", found.settings),
        ("Versions", found.versions),
        ("Only in the first", found.only_first),
        ("Only in the second", found.only_second),
    ):
        if texts:
            console.print(Text(title, "bold"))
            console.print(Text("\n".join(f"  {text}" for text in texts)))
    _print_weights(found.weights)


def _print_weights(weights: "list[WeightDifference]") -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Weight")
    table.add_column("Largest difference", justify="right")
    table.add_column("Relative", justify="right")
    for weight in weights[:_NUM_WEIGHTS_SHOWN]:
        largest = "other shape" if weight.largest is None else formats.number(weight.largest)
        table.add_row(weight.name, largest, formats.number(weight.relative))
    console.print(table)
    hidden = len(weights) - _NUM_WEIGHTS_SHOWN
    if hidden > 0:
        console.print(f"{hidden} more weights with smaller differences; --json shows all.", highlight=False)


def _export(run: Path, word: str, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from genrec.training.checkpoint_tools import export_checkpoint

    directory, experiment = open_run(run)
    checkpoint = find_checkpoint(store_of(experiment, directory), word)
    folder = output or directory.root / "exports" / checkpoint.name
    with nullcontext() if as_json else console.status("exporting"):
        export_checkpoint(checkpoint, directory, experiment, folder, overwrite=overwrite)
    directory.push()
    if as_json:
        print(json.dumps({"checkpoint": str(checkpoint), "export": str(folder)}))
    else:
        console.print(f"Export: {folder}", highlight=False)
