"""The command line: `genrec COMMAND`. It reads options, calls one function, and prints what it returns."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn

from genrec.cli_bench import bench
from genrec.cli_checkpoints import checkpoints
from genrec.cli_compare import compare
from genrec.cli_options import options_of
from genrec.cli_plan import plan
from genrec.cli_report import report
from genrec.cli_submit import jobs, status, submit
from genrec.cli_tokenize import tokenize
from genrec.cli_tune import tune
from genrec.config import ExperimentConfig, load_config
from genrec.config_errors import explain_validation_error
from genrec.data.schema import Role
from genrec.errors import ConfigError, GenrecError, full_disk, unusable_path
from genrec.inference.serving import ServedModel, Serving
from genrec.run_dir import RunDir, load_saved_config, log_to, open_run, run_dir_of

STARTED_AT_S = time.time()

app = typer.Typer(
    help="Train large generative recommenders on Ray and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

ConfigPath = Annotated[Path, typer.Argument(help="YAML file with the experiment", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.field=value, any number", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="run directory, as `genrec train` printed it", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Launcher = Annotated[Literal["ray", "local"], typer.Option(help="ray, or local: this process alone, without Ray")]


@app.command()
def config(file: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved config: defaults, then the file, then the overrides."""
    values = load_config(file, overrides).model_dump(mode="json")
    print(json.dumps(values, indent=1) if as_json else yaml.safe_dump(values, sort_keys=False), end="")


@app.command()
def prepare(
    file: ConfigPath,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing prepared set")] = False,
    append: Annotated[bool, typer.Option(help="add the files that are new in the log's folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn logs into a prepared data set."""
    from genrec.data.append import append as append_data
    from genrec.data.prepare import ensure_prepared
    from genrec.data.prepare import prepare as prepare_data

    if append and overwrite:
        raise ConfigError("--append adds to the prepared set, --overwrite makes it again; give one of them.")
    data = load_config(file, overrides).data
    news = ""
    say = None if as_json else _say
    with _phases() as progress:
        if append:
            appended = append_data(data, progress)
            manifest = appended.manifest
            news = f"{appended.num_files:,} new files, {appended.num_events:,} new events; "
        elif overwrite:
            manifest = prepare_data(data, overwrite=True, progress=progress, say=say)
        else:
            manifest = ensure_prepared(data, progress, say)
    if as_json:
        print(manifest.model_dump_json(exclude={"files", "config"}))
        return
    vectors = manifest.item_vectors
    held = "" if vectors is None else f" ({vectors.num_items:,} with a vector, {vectors.num_cold_items:,} cold)"
    console.print(
        f"{news}{data.prepared}: {manifest.num_users:,} users, {manifest.num_items:,} items{held}, "
        f"{manifest.num_events:,} events ({manifest.num_train_events:,} to train on), "
        f"{sum(manifest.rejected.values()):,} rows rejected",
        highlight=False,
    )
    for bad in manifest.rejected_files:
        _say(f"put aside ({bad.reason}): {bad.message}")


@app.command()
def train(
    file: ConfigPath,
    overrides: Overrides = None,
    launcher: Launcher = "ray",
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the run of this name first")] = False,
    allow_change: Annotated[
        list[str] | None, typer.Option(help="setting that the resumed run may change, as train.max_steps; any number")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="measure some of the first steps by phase; a trace goes to profile/")
    ] = False,
) -> None:
    """Train a model, or go on with its run; prepares the data set when that has not been done."""
    _train(load_config(file, overrides), launcher, fresh, allow_change or [], profile=profile)


@app.command()
def refit(
    run: RunPath,
    launcher: Launcher = "ray",
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the refit of this run first")] = False,
) -> None:
    """Train a finished run again, on its validation events too, for as long as its best model was trained."""
    from genrec.training.refit import refit_config

    directory, experiment = open_run(run)
    _train(refit_config(directory, experiment), launcher, fresh, [])


def _train(
    experiment: ExperimentConfig, launcher: str, fresh: bool, allow_change: list[str], *, profile: bool = False
) -> None:
    from genrec.data.prepare import ensure_prepared
    from genrec.planning.fit import check_memory
    from genrec.semantic.tokenize import ensure_map
    from genrec.training.progress import progress_of
    from genrec.training.start import check_launcher, open_run_directory, read_fitting_manifest

    check_launcher(experiment, launcher)
    if os.environ.get("RANK", "0") != "0":  # another process of torchrun; rank 0 prepares and prints
        _fit(experiment, run_dir_of(experiment), launcher, profile)
        return
    with _phases() as progress:
        ensure_prepared(experiment.data, progress, _say)
        ensure_map(experiment, progress, _say)
    check_memory(experiment, read_fitting_manifest(experiment), launcher)
    said: list[str] = []

    def say(text: str) -> None:
        _say(text)
        said.append(text)

    run = open_run_directory(experiment, fresh=fresh, say=say, allow_change=allow_change)
    log = log_to(run.log_path, experiment.tracking.log_format)
    for text in said:
        log.info(text)
    experiment = load_saved_config(run.config_path)
    try:
        with progress_of(run.metrics_path, console):
            _fit(experiment, run, launcher, profile)
    finally:
        run.push()
    _print_evaluation(json.loads(run.evaluation_path.read_text(encoding="utf-8")), experiment)
    console.print(f"Run directory: {run.uri or run.root}", highlight=False)


@contextmanager
def _phases() -> Iterator[Callable[[str, float, float], None]]:
    """Shows the phases of preparing data: what is being done, how much of it, how quickly, and for how long still."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=console, transient=True) as view:
        task = view.add_task("prepare", total=1.0, visible=False, rate="")

        def update(phase: str, done: float, total: float) -> None:
            text = f"prepare: {phase}"
            if view.tasks[task].description != text:
                view.reset(task, description=text, visible=True)
            elapsed = view.tasks[task].elapsed
            rate = f"{done / elapsed:,.0f} events/s" if total > 1 and done and elapsed else ""
            view.update(task, completed=done, total=max(total, 1.0), rate=rate)

        yield update


def _fit(experiment: ExperimentConfig, run: RunDir, launcher: str, profile: bool) -> None:
    if launcher == "local":
        from genrec.training.local import fit
    else:
        from genrec.cluster.ray_train import fit
    fit(experiment, run, STARTED_AT_S, profile=profile)


@app.command()
@options_of({ServedModel: "Another model than the run's own; its metrics go to evaluation-served.json"})
def evaluate(
    run: RunPath,
    split: Annotated[Literal["validation", "test", "both"], typer.Option(help="which events to predict")] = "both",
    slices: Annotated[bool, typer.Option("--slices", help="also by history length, popularity, type of item")] = False,
    as_json: AsJson = False,
    **served: Any,
) -> None:
    """Measure a run's best model on the whole catalogue, beside the popularity baseline."""
    from genrec.evaluation.run_evaluation import evaluate_run, evaluate_served
    from genrec.reporting.console import slices_summary

    asked = explain_validation_error(ServedModel, served, "genrec evaluate")
    directory, experiment = open_run(run)
    roles: tuple[Role, ...] = experiment.evaluated_roles if split == "both" else (split,)
    with nullcontext() if as_json else console.status("evaluating"):
        is_plain = asked == ServedModel()
        evaluation = evaluate_run(directory, roles) if is_plain else evaluate_served(directory, roles, asked)
        directory.push()
    if as_json:
        print(json.dumps(evaluation))
    else:
        _print_evaluation(evaluation, experiment)
    if slices and not as_json:
        console.print(slices_summary(evaluation, experiment.evaluation.metric))


@app.command()
@options_of({Serving: None})
def recommend(
    run: RunPath,
    k: Annotated[int, typer.Option("--k", min=1, help="items for each user")] = 10,
    output: Annotated[Path | None, typer.Option(help="folder for the Parquet files; default: in the run")] = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="items of the user's history may come back")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace existing recommendations")] = False,
    **serving: Any,
) -> None:
    """Write the k best items of every user to Parquet."""
    from genrec.inference.batch import recommend_all

    asked = explain_validation_error(Serving, serving, "genrec recommend")
    directory, _ = open_run(run)
    path = recommend_all(directory, output, k, exclude_seen=not keep_seen, overwrite=overwrite, serving=asked)
    directory.push()
    console.print(f"Recommendations: {path}", highlight=False)


app.command()(checkpoints)
app.command()(compare)
app.command()(tune)
app.command()(plan)
app.command()(tokenize)
app.command()(bench)
app.command()(report)
app.command()(submit)
app.command()(status)
app.add_typer(jobs, name="jobs")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help="prepared folder, or a config file", show_default=False)],
    overrides: Overrides = None,
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in a prepared data set, and what an epoch of training on it is."""
    from genrec.reporting import data_console, data_report

    experiment = data_report.config_of(data, overrides)
    with nullcontext() if as_json else console.status("reading the data set"):
        facts = data_report.inspect_data(experiment)
    if html:
        data_report.write_data_page(facts, html)
    if as_json:
        print(json.dumps(data_report.facts_json(facts)))
        return
    console.print(data_console.data_summary(facts), highlight=False)
    if html:
        console.print(f"Page: {html}", highlight=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine, line by line, each with its mend."""
    from dataclasses import asdict

    from genrec.doctor import diagnose, print_findings

    findings = diagnose()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        print_findings(findings)
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)


def _print_evaluation(evaluation: dict[str, Any], experiment: ExperimentConfig) -> None:
    from genrec.reporting.console import console_summary

    best_known = evaluation.get("test", {}).get("best_known")
    console.print(console_summary(evaluation, experiment.evaluation.metric, best_known))


def _say(text: str) -> None:
    console.print(escape(text), highlight=False)


def main() -> None:
    """Entry point of the `genrec` command: a user's mistake is one sentence and an exit code, never a stack trace."""
    try:
        app()
    except GenrecError as error:
        _fail(error)
    except OSError as error:
        known = full_disk(error) or unusable_path(error)
        if known is None:
            raise
        _fail(known)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on from the last checkpoint.")
        sys.exit(130)


def _fail(error: GenrecError) -> NoReturn:
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(error.exit_code)
