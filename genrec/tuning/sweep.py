"""`genrec tune`: from the sweep file to its best config. What Ray does is in ray_sweep.py."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from genrec.config import ExperimentConfig
from genrec.config_errors import read_yaml
from genrec.data.manifest import Manifest
from genrec.errors import ConfigError, RunError
from genrec.run_dir import value_differences, write_atomically
from genrec.tuning.config import SweepConfig
from genrec.tuning.director import Director
from genrec.tuning.handoff import check_mutable
from genrec.tuning.proposals import ListedProposer, Proposer, proposer_of
from genrec.tuning.records import Sweep, SweepDir, Trial, read_sweep
from genrec.tuning.space import Params, check_space, config_with

MAY_CHANGE = ("budget", "max_concurrent", "sweeps_dir")
"""What a sweep may change when it goes on: nothing that decides what a trial is."""

Show = Callable[[Sweep], None]
"""Called every few seconds with the books."""

Told = Callable[[Trial], None]
"""Called when a trial's state has changed."""


def check_sweep(spec: SweepConfig, base: ExperimentConfig) -> None:
    """Raises ConfigError with what is wrong with a sweep, before anything starts."""
    check_space(spec, base.model_dump(mode="json"))
    if spec.scheduler.name != "pbt":
        return
    check_mutable(list(spec.space))
    conditional = [key for key, domain in spec.space.items() if domain.when]
    if conditional:
        raise ConfigError(
            f"scheduler pbt gives every trial the same settings, and space.{conditional[0]} has a `when`; leave it out."
        )
    if base.train.checkpoint_dir is not None or base.evaluation.validation == "background":
        raise ConfigError(
            "scheduler pbt hands checkpoints over in the sweep's folder, each with its own validation; set "
            "train.checkpoint_dir to null and evaluation.validation to inline."
        )


def tune(
    spec: SweepConfig, base: ExperimentConfig, manifest: Manifest, show: Show, told: Told, *, fresh: bool = False
) -> Sweep:
    """Runs a sweep, or goes on with it; the data set is prepared. Returns its books.

    Raises ConfigError when no trial can run on this cluster, RunError when the sweep in the folder is another one, or
    another command is running it.
    """
    folder = SweepDir(spec.root)
    check_sweep(spec, base)
    with _alone(folder):
        if fresh:
            _delete(folder)
        _keep_spec(folder, spec, base)
        return _run(folder, spec, base, manifest, (show, told), None)


def run_listed(
    folder: SweepDir,
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    listed: Sequence[Params],
    tell: tuple[Show, Told],
) -> Sweep:
    """Runs a list of trials in a folder of its own, each to its end."""
    with _alone(folder):
        return _run(folder, spec, base, manifest, tell, ListedProposer(listed))


def _run(
    folder: SweepDir,
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    tell: tuple[Show, Told],
    proposer: Proposer | None,
) -> Sweep:
    from genrec.cluster.ray_train import worker_environment
    from genrec.cluster.resources import check_resources
    from genrec.data.ray_session import ensure_ray
    from genrec.training.start import check_fit
    from genrec.tuning.ray_sweep import run_sweep
    from genrec.tuning.ray_trial import TrialJob

    check_fit(base, manifest)
    ensure_ray()
    if not any(key.startswith(("cluster.", "evaluation.validation")) for key in spec.space):
        check_resources(base)
    whole = base_of_trials(spec, base)
    director = director_of(spec, base, manifest, check_resources, folder=folder, proposer=proposer)
    sweep = director.sweep
    director.on_change = tell[1]
    job = TrialJob(
        sweep_root=str(folder.root),
        base=whole.model_dump(mode="json"),
        metrics=spec.metrics,
        events_per_epoch=manifest.num_train_events,
        hands_over=spec.scheduler.name == "pbt",
        environment=worker_environment(),
    )
    run_sweep(director, whole, job, lambda: tell[0](sweep))
    _finish(director, base)
    _check_some_ran(sweep)
    return sweep


def director_of(
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    check_cluster: Callable[[ExperimentConfig], None],
    *,
    folder: SweepDir,
    proposer: Proposer | None = None,
) -> Director:
    """What keeps the books of a sweep: those in its folder, or new ones. `proposer` replaces the one of its config."""
    from genrec.tuning.admission import Gate

    values = base_of_trials(spec, base).model_dump(mode="json")
    sweep = read_sweep(folder) or Sweep(
        name=spec.name,
        metrics=list(spec.metrics),
        modes=list(spec.modes),
        seed=spec.seed,
        spec={},
        base=base.model_dump(mode="json"),
    )
    sweep.spec = spec.model_dump(mode="json")
    gate = Gate(folder, values, manifest, check_cluster)
    return Director(folder, spec, sweep, gate, proposer or proposer_of(spec, values))


def base_of_trials(spec: SweepConfig, base: ExperimentConfig) -> ExperimentConfig:
    """The base config as trials get it: whole paths, checkpoints apart from other sweeps', one group at the tracker."""
    from genrec.training.start import with_whole_paths

    whole = with_whole_paths(base)
    train = whole.train
    if train.checkpoint_dir is not None:
        train = train.model_copy(update={"checkpoint_dir": f"{train.checkpoint_dir.rstrip('/')}/{spec.name}"})
    if spec.scheduler.name == "pbt":  # any validation may be handed over, so each has a checkpoint, and it stays
        train = train.model_copy(update={"checkpoint_every_steps": None, "keep_checkpoints": 1_000_000})
    tracking = whole.tracking.model_copy(update={"wandb_group": spec.name})
    return whole.model_copy(update={"train": train, "tracking": tracking})


def best_config(spec: SweepConfig, base: ExperimentConfig, params: Params) -> ExperimentConfig:
    """The config of a trial as a run of its own."""
    values = {**base.model_dump(mode="json"), "name": f"{spec.name}-best"}
    return config_with(values, params, "the best trial")


def _finish(director: Director, base: ExperimentConfig) -> None:
    """Importances, best.yaml, and the checkpoints that only a hand-off needed."""
    from genrec.tuning.optuna_proposer import importances

    sweep, spec, folder = director.sweep, director.spec, director.folder
    sweep.importances = importances(spec, director.outcomes())
    director.save()
    if spec.scheduler.name == "pbt":
        _prune(folder, sweep, base.train.keep_checkpoints)
    if sweep.best is None:
        return
    trial = sweep.trials[sweep.best]
    text = yaml.safe_dump(best_config(spec, base, trial.settings).model_dump(mode="json"), sort_keys=False)
    assert trial.best is not None
    head = (
        f"# genrec train {folder.best_path}\n#\n# Trial {trial.id} of sweep {spec.name}: "
        f"{spec.metrics[0]} {trial.best[spec.metrics[0]]:.6g} on validation, the best of {len(sweep.trials)} trials.\n"
    )
    write_atomically(folder.best_path, head + text)


def _prune(folder: SweepDir, sweep: Sweep, keep: int) -> None:
    from genrec.run_dir import RunDir
    from genrec.training.checkpoint import prune_checkpoints
    from genrec.training.checkpoint_store import CheckpointStore

    for trial in sweep.trials:
        for life in range(trial.progress.life + 1):
            store = CheckpointStore(RunDir(folder.run_path(trial.id, life)).checkpoints_path)
            prune_checkpoints(store, keep)


def _check_some_ran(sweep: Sweep) -> None:
    """Raises ConfigError or RunError with the first reason when every single trial was rejected or has failed."""
    bad = [trial for trial in sweep.trials if trial.state in ("rejected", "failed")]
    if not sweep.trials or len(bad) < len(sweep.trials):
        return
    first = bad[0]
    kind = ConfigError if first.state == "rejected" else RunError
    raise kind(f"None of the {len(bad)} trials has run to an end; trial {first.id} was {first.state}: {first.reason}")


@contextmanager
def _alone(folder: SweepDir) -> Iterator[None]:
    """Holds the sweep's lock, which ends with this process; raises RunError when another command has it."""
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another command is running the sweep in {folder.root}; wait for it, or end it, or use another name."
            ) from None
        yield


def _delete(folder: SweepDir) -> None:
    for path in folder.root.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _keep_spec(folder: SweepDir, spec: SweepConfig, base: ExperimentConfig) -> None:
    """Writes the sweep down at its first start; raises RunError when it is another one now."""
    values: dict[str, Any] = {"sweep": spec.model_dump(mode="json"), "base": base.model_dump(mode="json")}
    if not folder.spec_path.is_file():
        write_atomically(folder.spec_path, yaml.safe_dump(values, sort_keys=False))
        return
    saved = read_yaml(folder.spec_path)
    compared = [
        {**each, "sweep": {k: v for k, v in each["sweep"].items() if k not in MAY_CHANGE}} for each in (saved, values)
    ]
    differences = value_differences(*compared)
    if differences:
        raise RunError(
            f"The sweep in {folder.root} is another one: its trials cannot be compared with new ones. Use another "
            "name=..., or start over with --fresh. Differences (sweep -> now):\n  " + "\n  ".join(differences)
        )


def spec_of_folder(path: Path) -> tuple[SweepConfig, ExperimentConfig]:
    """The sweep and the base config of a sweep's folder."""
    from genrec.config import config_from_dict
    from genrec.config_errors import explain_validation_error

    values = read_yaml(SweepDir(path).spec_path)
    return (
        explain_validation_error(SweepConfig, values["sweep"], str(path)),
        config_from_dict(values["base"], str(path)),
    )
