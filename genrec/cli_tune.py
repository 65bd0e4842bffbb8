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
from rich.markup import escape

from genrec.errors import ConfigError, RunError

if TYPE_CHECKING:
    from genrec.tuning.records import Sweep
    from genrec.tuning.sweep import Show, Told

console = Console()


def tune(
    file: Annotated[Path, typer.Argument(help="YAML file with the sweep", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="sweep_setting=value, as budget.trials=32", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the sweep of this name first")] = False,
    retrain_best: Annotated[
        int | None, typer.Option(min=1, help="train so many of the best configs again, with fresh seeds, and the base")
    ] = None,
    retrain_seeds: Annotated[int, typer.Option(min=1, help="fresh seeds for each of them")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Search for good settings, or go on with a sweep; prepares the data set when that has not been done."""
    from genrec.data.manifest import load_manifest
    from genrec.data.prepare import ensure_prepared
    from genrec.semantic.tokenize import ensure_map
    from genrec.tuning.config import load_sweep
    from genrec.tuning.retrain import retrain_best as again
    from genrec.tuning.sweep import check_sweep
    from genrec.tuning.sweep import tune as run

    if retrain_best is not None and fresh:
        raise ConfigError("--fresh deletes the sweep that --retrain-best takes its configs from; give one of them.")
    spec, base = load_sweep(file, overrides)
    check_sweep(spec, base)
    ensure_prepared(base.data, lambda *_: None, None)
    ensure_map(base)
    manifest = load_manifest(base.data.prepared)
    with _watching(spec.metrics[0], quiet=as_json) as (show, told):
        if retrain_best is None:
            sweep = run(spec, base, manifest, show, told, fresh=fresh)
        else:
            sweep = again(spec, base, manifest, retrain_best, retrain_seeds, (show, told))
    if as_json:
        print(json.dumps(asdict(sweep)))
        _end(sweep)
        return
    if not console.is_terminal:
        from genrec.tuning.table import sweep_table

        console.print(sweep_table(sweep))
    from genrec.reporting.sweep_report import write_sweep_report

    page = write_sweep_report(spec.root)
    if retrain_best is not None:
        from genrec.reporting.sweep_record import read_record
        from genrec.reporting.sweep_sections import verdict

        console.print(escape(verdict(read_record(spec.root))), highlight=False, soft_wrap=True)
    best = f"; its best config: {spec.root / 'best.yaml'}" if sweep.best is not None else ""
    console.print(f"Sweep: {spec.root}{best}; report: {page}", highlight=False)
    _end(sweep)


def _end(sweep: "Sweep") -> None:
    """Ends as any command does that was told to: Ray Tune had taken the signal, to stop the trials first."""
    from genrec.tuning.director import INTERRUPTED

    if sweep.state != "interrupted":
        return
    if sweep.reason in (None, INTERRUPTED):
        raise KeyboardInterrupt
    raise RunError(f"{sweep.reason} The sweep has ended early; the same command goes on with it.")


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
