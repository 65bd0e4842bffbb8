"""What happens before a launcher starts workers: data prepared, the run directory checked, resumed or made fresh."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from genrec.config import ExperimentConfig
from genrec.data.item_types import read_item_types
from genrec.data.manifest import Manifest, load_manifest
from genrec.errors import ConfigError, RunError
from genrec.run_dir import (
    RunDir,
    load_saved_config,
    read_metrics,
    run_dir_of,
    write_atomically,
)
from genrec.training.checkpoint import list_checkpoints, resume_point
from genrec.training.resume_guard import check_changes
from genrec.training.versions import installed_versions


def check_launcher(config: ExperimentConfig, launcher: str) -> None:
    """Raises ConfigError when the config asks for what this launcher cannot do."""
    if launcher == "local" and config.evaluation.validation == "background":
        raise ConfigError(
            "evaluation.validation=background needs the Ray launcher, which has a task to validate in; leave out "
            "--launcher local, or set evaluation.validation=inline."
        )


def open_run_directory(
    config: ExperimentConfig, *, fresh: bool, say: Callable[[str], None], allow_change: Sequence[str] = ()
) -> RunDir:
    """The run directory of `config`, ready to be trained in.

    An existing run is resumed. RunError shows the differences that it may not take over (resume_guard.py), unless
    nothing has been trained yet, or that none of its checkpoints can be used. `fresh` deletes it first.
    """
    run = run_dir_of(config)
    if fresh and run.root.exists():
        if not run.config_path.is_file():
            raise RunError(f"--fresh would delete {run.root}, which is not a run; choose another name or runs_dir.")
        shutil.rmtree(run.root)
    if run.config_path.is_file() and _has_trained(run):
        for change in check_changes(str(run.root), load_saved_config(run.config_path), config, allow_change):
            say(f"Changed: {change}")
    run.create(config)
    write_atomically(run.environment_path, json.dumps(environment(), indent=1))
    newest = resume_point(run.checkpoints_path, digests=False, warn=say)
    if newest is not None:
        say(f"Resuming {run.root} from {newest.name}.")
    elif config.train.start_from is not None:
        _say_start(config, say)
    return run


def _say_start(config: ExperimentConfig, say: Callable[[str], None]) -> None:
    """Says how the export fits that the run begins with; raises before any worker starts when it does not."""
    from genrec.training.warm_start import check_start  # imports torch

    warm = check_start(config, load_manifest(config.data.prepared))
    if warm is not None:
        say(warm.sentence)


def _has_trained(run: RunDir) -> bool:
    """Whether another config would change the meaning of something that is already there."""
    return bool(list_checkpoints(run.checkpoints_path) or read_metrics(run.metrics_path))


def check_fit(config: ExperimentConfig, manifest: Manifest) -> None:
    """Raises ConfigError when the model or the evaluation does not fit the data set."""
    if config.model.name == "hstu" and config.model.time_bias and not manifest.has_times:
        raise ConfigError(
            f"model.time_bias=true needs event times, and {config.data.prepared} has none (its source gives only an "
            "order); set model.time_bias=false."
        )
    _check_inputs(config, manifest)
    largest = max(config.evaluation.ks)
    if largest > manifest.num_items:
        raise ConfigError(
            f"evaluation.ks has {largest}, and the catalogue has only {manifest.num_items} items; "
            f"use cut-offs up to {manifest.num_items}."
        )


def _check_inputs(config: ExperimentConfig, manifest: Manifest) -> None:
    prepared = config.data.prepared
    if config.inputs.actions and not manifest.actions:
        raise ConfigError(
            f"inputs.actions=true needs actions, and {prepared} has none; set data.source.columns.action or set it to "
            "false."
        )
    if config.inputs.item_types and not read_item_types(prepared).any():
        raise ConfigError(
            f"inputs.item_types=true needs item types, and the items of {prepared} have none; set "
            "data.source.items_path to a table with a type column, or set it to false."
        )
    if config.inputs.time_features and not manifest.has_times:
        raise ConfigError(
            f"inputs.time_features needs event times, and {prepared} has none (its source gives only an order); set "
            "it to []."
        )


def read_fitting_manifest(config: ExperimentConfig) -> Manifest:
    """The manifest of the prepared data set, checked against the config."""
    manifest = load_manifest(config.data.prepared)
    check_fit(config, manifest)
    return manifest


def environment() -> dict[str, object]:
    """Commit, versions and hardware, for environment.json."""
    return {
        "command": " ".join(["genrec", *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": installed_versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": _cpus(),
    }


def _commit() -> str | None:
    """Commit of the checkout that genrec is run from, with `+changes` when files differ; None outside one."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
