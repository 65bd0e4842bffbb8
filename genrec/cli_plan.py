"""`genrec plan CONFIG`: what a run needs and how long its steps take, before anything starts."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from genrec.config import load_config

console = Console()


def plan(
    file: Annotated[Path, typer.Argument(help="YAML file with the experiment", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.field=value, any number", show_default=False)
    ] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML file that describes a cluster; default: here")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="finished run on the same hardware whose speed the plan takes over")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="calibration.json of an earlier --calibrate")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Predict memory, communication and step time of every engine, and pick the fastest that fits."""
    from genrec.planning.command import plan_config
    from genrec.planning.console import plan_json, plan_summary

    experiment = load_config(file, overrides)
    found, scaling, saved = plan_config(experiment, cluster, calibrate, calibration)
    if as_json:
        print(json.dumps(plan_json(found, scaling)))
        return
    console.print(plan_summary(found, scaling), highlight=False)
    if saved is not None:
        console.print(f"Calibration: {saved}", highlight=False)
