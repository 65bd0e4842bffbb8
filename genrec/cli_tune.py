"""`genrec tune SWEEP.yaml`: a sweep of training runs, watched, resumable, with its best config at the end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from genrec.tuning.sweep import Show, Told

console = Console()


def tune(
    file: Annotated[Path, typer.Argument(help="YAML file with the sweep", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="sweep_setting=value, as budget.trials=32", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the sweep of this name first")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Search for good settings, or go on with a sweep; prepares the data set when that has not been done."""
    from genrec.data.manifest import load_manifest
    from genrec.data.prepare import ensure_prepared
    from genrec.tuning.config import load_sweep
    from genrec.tuning.sweep import check_sweep
    from genrec.tuning.sweep import tune as run

    spec, base = load_sweep(file, overrides)
    check_sweep(spec, base)
    ensure_prepared(base.data, lambda *_: None, None)
    manifest = load_manifest(base.data.prepared)
    with _watching(spec.metrics[0], quiet=as_json) as (show, told):
        sweep = run(spec, base, manifest, show, told, fresh=fresh)
    if as_json:
        print(json.dumps(asdict(sweep)))
        return
    if not console.is_terminal:
        from genrec.tuning.table import sweep_table

        console.print(sweep_table(sweep))
    console.print(f"Sweep: {spec.root}; its best config: {spec.root / 'best.yaml'}", highlight=False)


@contextmanager
def _watching(metric: str, *, quiet: bool) -> "Iterator[tuple[Show, Told]]":
    """A live table on a terminal; elsewhere a line for every change."""
    from genrec.tuning.table import line_of, sweep_table

    if quiet:
        yield (lambda _: None), (lambda _: None)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield (lambda sweep: live.update(sweep_table(sweep), refresh=True)), (lambda _: None)
    else:
        yield (lambda _: None), (lambda trial: console.print(line_of(trial, metric), highlight=False, soft_wrap=True))
