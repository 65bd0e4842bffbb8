"""`genrec tokenize CONFIG`: codes for the items of a catalogue."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn

from genrec.config import load_config
from genrec.errors import ConfigError

console = Console()


def tokenize(
    file: Annotated[Path, typer.Argument(help="YAML file with the experiment", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.field=value, any number", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing map; models trained on it fit no more")] = False,
    extend: Annotated[bool, typer.Option(help="give new items codes and change no code that is there")] = False,
    accept_unhealthy: Annotated[
        bool, typer.Option("--accept-unhealthy", help="write the map even where semantic_ids.health is not reached")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Give every item a short tuple of codes; prepares the data set when that has not been done."""
    from genrec.data.prepare import ensure_prepared
    from genrec.reporting.semantic_report import health_summary
    from genrec.semantic.extend import extend as extend_map
    from genrec.semantic.team import open_team
    from genrec.semantic.tokenize import semantic_section
    from genrec.semantic.tokenize import tokenize as make_map

    if extend and (overwrite or accept_unhealthy):
        raise ConfigError("--extend keeps the map, --overwrite and --accept-unhealthy make one; leave out the others.")
    experiment = load_config(file, overrides)
    section = semantic_section(experiment)
    with _phases() as progress, open_team(os.environ) as team:
        if team.is_first:
            ensure_prepared(experiment.data, progress, None if as_json else _say)
        if extend:
            extended = extend_map(experiment, progress) if team.is_first else None
            made = None
        else:
            extended = None
            made = make_map(
                experiment, overwrite=overwrite, accept_unhealthy=accept_unhealthy, progress=progress, team=team
            )
    if made is not None and as_json:
        print(json.dumps({"path": section.path, "digest": made.ids.digest, "health": made.health.as_json()}))
    elif made is not None:
        console.print(health_summary(made.health), highlight=False)
        for text in made.accepted:
            _say(f"accepted although it is beyond a threshold: {text}")
        _say(f"Map: {section.path}, {made.ids.num_items:,} items, levels {list(made.ids.sizes)}")
        _say(f"Page: {Path(section.path) / 'health.html'}")
    if extended is not None and as_json:
        told = {"path": section.path, "digest": extended.ids.digest, "num_new": extended.num_new}
        print(json.dumps(told | {"num_moved": extended.num_moved, "grown": extended.grown}))
    elif extended is not None:
        for text in extended.sentences():
            _say(text)
        _say(f"Map: {section.path}, {extended.ids.num_items:,} items, levels {list(extended.ids.sizes)}")


@contextmanager
def _phases() -> Iterator[Callable[[str, float, float], None]]:
    """Shows what is being done and how much of it."""
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as view:
        task = view.add_task("tokenize", total=1.0, visible=False)

        def update(phase: str, done: float, total: float) -> None:
            view.update(task, description=phase, completed=done, total=max(total, 1.0), visible=True)

        yield update


def _say(text: str) -> None:
    console.print(escape(text), highlight=False)
