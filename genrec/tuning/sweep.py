"""`genrec tune`: from the sweep file to its best config. What Ray does is in ray_sweep.py."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from genrec.config import ExperimentConfig, config_from_dict
from genrec.config_errors import read_yaml
from genrec.data.manifest import Manifest
from genrec.errors import ConfigError, DataError, RunError
from genrec.run_dir import RunDir, load_saved_config, value_differences, write_atomically
from genrec.tuning.best import write_best
from genrec.tuning.config import MAP, NoScheduler, PbtScheduler, SweepConfig
from genrec.tuning.director import Director
from genrec.tuning.handoff import check_mutable
from genrec.tuning.proposals import ListedProposer, proposer_of
from genrec.tuning.records import Sweep, SweepDir, Trial, read_sweep
from genrec.tuning.space import Params, check_space

MAY_CHANGE = ("budget", "max_concurrent", "sweeps_dir")
"""What a sweep may change when it goes on: nothing that decides what a trial is."""

Show = Callable[[Sweep], None]
"""Called every few seconds with the books."""

Told = Callable[[Trial], None]
"""Called when a trial's state has changed."""


def check_sweep(spec: SweepConfig, base: ExperimentConfig) -> None:
    """Raises ConfigError with what is wrong with a sweep, before anything starts."""
    check_space(spec, base.model_dump(mode="json"))
    _check_rungs(spec, base)
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


def _check_rungs(spec: SweepConfig, base: ExperimentConfig) -> None:
    """Raises ConfigError when a scheduler would first look at trials when they have ended."""
    chosen, epochs = spec.scheduler, base.train.max_epochs
    name = "interval_epochs" if isinstance(chosen, PbtScheduler) else "grace_epochs"
    first = None if isinstance(chosen, NoScheduler) else getattr(chosen, name)
    if first is None or epochs is None or "train.max_epochs" in spec.space:
        return
    if base.train.min_steps is not None or "train.min_steps" in spec.space:  # which may take more epochs
        return
    first = max(first, base.train.evaluate_every_epochs)
    if first >= epochs:
        raise ConfigError(
            f"scheduler {chosen.name} first compares trials after {first:g} epochs (scheduler.{name}, or "
            f"train.evaluate_every_epochs where that is more), and they end after train.max_epochs ({epochs}), so it "
            "would never change anything; lower the one, raise the other, or use scheduler: {name: none}."
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
    with alone(folder):
        if fresh or _deleting(folder).exists():
            _delete(folder)
        keep_spec(folder, spec, base)
        return _run(folder, spec, base, manifest, (show, told), None)


def run_listed(
    folder: SweepDir,
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    listed: Sequence[tuple[str, Params]],
    tell: tuple[Show, Told],
) -> Sweep:
    """Runs a list of trials, (group, settings) each, in a folder of its own, each to its end."""
    folder.root.mkdir(parents=True, exist_ok=True)
    return _run(folder, spec, base, manifest, tell, listed)


def _run(
    folder: SweepDir,
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    tell: tuple[Show, Told],
    listed: Sequence[tuple[str, Params]] | None,
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
    director = director_of(spec, base, manifest, check_resources, folder=folder, listed=listed)
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
    listed: Sequence[tuple[str, Params]] | None = None,
) -> Director:
    """What keeps the books of a sweep: those in its folder, or new ones.

    `listed`, (group, settings) of every trial, replaces what its config would propose.
    """
    from genrec.tuning.admission import Gate

    values = base_of_trials(spec, base).model_dump(mode="json")
    spec = with_whole_maps(spec)
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
    if listed is None:
        return Director(folder, spec, sweep, gate, proposer_of(spec, values))
    groups, params = [group for group, _ in listed], [params for _, params in listed]
    return Director(folder, spec, sweep, gate, ListedProposer(params), groups)


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


def with_whole_maps(spec: SweepConfig) -> SweepConfig:
    """The sweep with whole paths of the maps of codes that it searches, or makes a condition: see `base_of_trials`."""
    from genrec.training.start import whole_path

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(each) for each in value]
        return whole_path(value) if isinstance(value, str) else value

    space = {}
    for key, domain in spec.space.items():
        when = {name: whole(value) if name == MAP else value for name, value in domain.when.items()}
        choice = whole(domain.choice) if key == MAP else domain.choice
        space[key] = domain.model_copy(update={"when": when, "choice": choice})
    return spec.model_copy(update={"space": space})


def _finish(director: Director, base: ExperimentConfig) -> None:
    """Importances, best.yaml, and the checkpoints that only a hand-off needed."""
    from genrec.tuning.optuna_proposer import importances

    sweep, spec, folder = director.sweep, director.spec, director.folder
    if director.groups is not None:  # a retraining: nothing is searched, and the sweep's own best.yaml tells of it
        return
    sweep.importances = importances(spec, director.outcomes())
    director.save()
    if spec.scheduler.name == "pbt":
        _prune(folder, sweep, base.train.keep_checkpoints)
    write_best(folder, spec, base, sweep)


def _prune(folder: SweepDir, sweep: Sweep, keep: int) -> None:
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
def alone(folder: SweepDir) -> Iterator[None]:
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


def _deleting(folder: SweepDir) -> Path:
    """Stands in a sweep's folder while it is being deleted: what a kill has left of it is no sweep."""
    return folder.root / "deleting"


def _delete(folder: SweepDir) -> None:
    """Deletes what is in a sweep's folder, and checkpoints that its trials keep elsewhere (`train.checkpoint_dir`)."""
    mark = _deleting(folder)
    mark.touch()
    for trials in (folder.trials_path, SweepDir(folder.retrained_path).trials_path):
        for path in trials.iterdir() if trials.is_dir() else ():
            _delete_checkpoints(RunDir(path))
    for path in folder.root.iterdir():
        if path.name in ("lock", mark.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    mark.unlink()


def _delete_checkpoints(run: RunDir) -> None:
    from genrec.training.checkpoint import STATE_FILE
    from genrec.training.checkpoint_store import store_of

    if not run.config_path.is_file():
        return
    store = store_of(load_saved_config(run.config_path), run)
    for name in store.names():
        store.delete(name, first=STATE_FILE)


def keep_spec(folder: SweepDir, spec: SweepConfig, base: ExperimentConfig) -> None:
    """Writes the sweep down at its first start; raises RunError when it is another one now."""
    values: dict[str, Any] = {"sweep": spec.model_dump(mode="json"), "base": base.model_dump(mode="json")}
    if not folder.spec_path.is_file():
        write_atomically(folder.spec_path, yaml.safe_dump(values, sort_keys=False))
        return
    saved = _saved_spec(folder)
    saved["base"] = config_from_dict(saved["base"], str(folder.spec_path)).model_dump(mode="json")  # newer settings
    compared = [
        {**each, "sweep": {k: v for k, v in each["sweep"].items() if k not in MAY_CHANGE}} for each in (saved, values)
    ]
    differences = value_differences(*compared)
    if differences:
        raise RunError(
            f"The sweep in {folder.root} is another one: its trials cannot be compared with new ones. Use another "
            "name=..., or start over with --fresh. Differences (sweep -> now):\n  " + "\n  ".join(differences)
        )


def _saved_spec(folder: SweepDir) -> dict[str, Any]:
    """The sweep and its base as they were written down; raises DataError when that file is damaged."""
    values = read_yaml(folder.spec_path)
    if not isinstance(values, dict) or not all(isinstance(values.get(part), dict) for part in ("sweep", "base")):
        raise DataError(
            f"{folder.spec_path} is damaged, so nobody can say which sweep this is; start it over with --fresh, or "
            "under another name."
        )
    return values
