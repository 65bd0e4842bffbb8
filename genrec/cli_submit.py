"""`genrec submit -- COMMAND`, `genrec jobs ...`: the same commands on a cluster; `genrec status`: how a run does."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from genrec.cli_options import options_of
from genrec.config_secrets import secrets_in
from genrec.errors import ConfigError
from genrec.launch.cluster_facts import dashboard_of
from genrec.launch.job_command import NOT_ON_A_CLUSTER
from genrec.launch.options import EntrypointOptions, ManifestOptions, Platform, PlatformOptions, checked_options
from genrec.reporting import formats

_YEAR = len("2026-")  # a table of 80 columns has no room for it

console = Console()

Address = Annotated[
    str | None, typer.Option(help="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265")
]
JobId = Annotated[str, typer.Argument(help="as `genrec submit` printed it", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]

jobs = typer.Typer(help="Jobs of a cluster: list, logs, stop, status.", no_args_is_help=True)


@options_of(
    {
        EntrypointOptions: "The job",
        ManifestOptions: "The machines of a manifest (--render)",
        PlatformOptions: "What one platform knows (--render)",
    }
)
def submit(
    context: typer.Context,
    command: Annotated[
        list[str], typer.Argument(help="after `--`, a genrec command: train CONFIG ...", show_default=False)
    ],
    address: Address = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="print the job's id and end, without its logs")] = False,
    working_dir: Annotated[Path, typer.Option(help="folder that is shipped, and where paths begin")] = Path("."),
    render: Annotated[Platform | None, typer.Option(help="print the manifest for a platform; send nothing")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the manifest, with --render")] = None,
    **job: Any,
) -> None:
    """Run a genrec command on a Ray cluster: ship this folder, follow the logs, end as the job ends."""
    options = checked_options(job)
    given = _parsed(context, command)
    if render is not None:
        from genrec.launch.render import render_job

        name, text = render_job(render, command, given, working_dir, options)
        if output is None:
            print(text, end="")
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text, encoding="utf-8")
            console.print(f"Manifest: {output / name}", highlight=False)
        return
    if output is not None:
        raise ConfigError("--output says where a manifest goes; add --render kuberay, slurm, aws or gcp.")
    from genrec.launch import ray_jobs
    from genrec.launch.shipment import plan_shipment

    dashboard = dashboard_of(address)
    planned = plan_shipment(dashboard, command, given, working_dir, options)
    tree = planned.tree
    source = "the files of git" if tree.in_git else "the folder, without environments, caches, runs and prepared sets"
    _say(f"Shipping {len(tree.files):,} files, {formats.num_bytes(tree.num_bytes)}: {source}.")
    for note in planned.notes:
        _say(note)
    client = ray_jobs.connect(dashboard)
    with planned.archive() as archive:
        job_id = ray_jobs.submit(
            client, planned.command.entrypoint, planned.submission_id, archive, options.entrypoint, planned.metadata,
            planned.packages,
        )  # fmt: skip
    _say(f"Job {job_id} on {dashboard.address}: genrec {' '.join(planned.command.words)}")
    if no_wait:
        _say(f"Follow it with `genrec jobs logs {job_id} --follow`, stop it with `genrec jobs stop {job_id}`.")
        return
    _follow(client, job_id)


def _parsed(context: typer.Context, command: list[str]) -> Mapping[str, Any]:
    """The parameters of the command that is sent; a wrong option is refused here, not on the cluster."""
    group = context.find_root().command
    assert isinstance(group, TyperGroup)
    name, *arguments = command
    for word in arguments:
        if secrets := secrets_in(word) or secrets_in(word.partition("=")[2]):
            raise ConfigError(
                f"A word of the command holds credentials ({', '.join(secrets)}), and Ray's pages show it to all users "
                "of the cluster; leave them out, and give them to the machines (docs/security.md)."
            )
    possible = [known for known in group.commands if known not in NOT_ON_A_CLUSTER]
    if name not in possible:
        raise ConfigError(f"`genrec {name}` cannot be sent to a cluster; these can: {', '.join(possible)}.")
    return group.commands[name].make_context(f"genrec {name}", list(arguments)).params


def _follow(client: Any, job_id: str) -> None:
    from genrec.launch import ray_jobs

    try:
        job = ray_jobs.follow(client, job_id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _say(
            f"\nDetached; job {job_id} goes on. `genrec jobs logs {job_id} --follow` follows it again, "
            f"`genrec jobs stop {job_id}` stops it."
        )
        raise typer.Exit(130) from None
    _say(f"Job {job_id}: {job.status.lower()}.{'' if job.result == 0 else f' {job.message}'}")
    if job.result:
        raise typer.Exit(job.result)


@jobs.command("list")
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs of a cluster, the newest first."""
    from genrec.launch import ray_jobs

    found = ray_jobs.jobs_of(_client(address))
    if as_json:
        print(json.dumps([asdict(job) for job in found]))
        return
    if not found:
        console.print("The cluster has no jobs.")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("Job", "Status", "Run", "UTC", "Time"):
        table.add_column(name, overflow="fold", no_wrap=name == "Job")
    for job in found:
        started = formats.moment(job.started_s)[_YEAR:].removesuffix(" UTC") or formats.MISSING
        lasted = job.started_s is not None and job.ended_s is not None
        took = formats.seconds(job.ended_s - job.started_s) if lasted else formats.MISSING  # type: ignore[operator]
        table.add_row(job.id, job.status.lower(), job.run or formats.MISSING, started, took)
    console.print(table)


@jobs.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the job ends, and end as it does")] = False,
    address: Address = None,
) -> None:
    """Print what a job has printed."""
    from genrec.launch import ray_jobs

    client = _client(address)
    if follow:
        ray_jobs.job_of(client, job_id)
        _follow(client, job_id)
    else:
        print(ray_jobs.logs_of(client, job_id), end="")


@jobs.command()
def stop(job_id: JobId, address: Address = None) -> None:
    """Stop a job; its run keeps its last checkpoint, and the same command, sent again, goes on from there."""
    from genrec.launch import ray_jobs

    job = ray_jobs.stop(_client(address), job_id)
    _say(f"Job {job_id}: {job.status.lower()}.")


@jobs.command("status")
def job_status(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Show one job: its state, command, run and commit."""
    from genrec.launch import ray_jobs

    job = ray_jobs.job_of(_client(address), job_id)
    if as_json:
        print(json.dumps(asdict(job)))
        return
    for name, value in asdict(job).items():
        if value not in (None, ""):
            shown = formats.moment(value) if name.endswith("_s") else value
            _say(f"{name.removesuffix('_s').replace('_', ' ')}: {shown}")


def status(
    run: Annotated[Path, typer.Argument(help="run directory, as `genrec train` printed it", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, or how it ended, from its folder."""
    from genrec.launch.run_status import run_status, status_lines

    found = run_status(run)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in status_lines(found):
        table.add_row(name, escape(text))
    console.print(table, highlight=False)


def _client(address: str | None) -> Any:
    from genrec.launch import ray_jobs

    dashboard = dashboard_of(address)
    dashboard.get("/api/version")  # a cluster that is not there costs a sentence, not minutes
    return ray_jobs.connect(dashboard)


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
