"""What happens before a launcher starts workers: data prepared, the run directory checked, resumed or made fresh."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from genrec.config import AutoConfig, DeepSpeedConfig, ExperimentConfig, config_from_dict
from genrec.data.item_types import read_item_types
from genrec.data.manifest import Manifest, load_manifest
from genrec.errors import ConfigError, RunError
from genrec.machine_facts import cores, gpus, processor
from genrec.run_dir import (
    RunDir,
    load_saved_config,
    read_metrics,
    run_dir_of,
    write_atomically,
)
from genrec.semantic.ids import load_semantic_ids
from genrec.semantic.run_map import check_map, semantic_ids_for
from genrec.semantic.vocabulary import map_for
from genrec.training.checkpoint import STATE_FILE, by_size, read_info, resume_point
from genrec.training.checkpoint_store import CheckpointStore, store_of
from genrec.training.resume_guard import check_changes, keep_packing
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
    nothing has been trained yet, or that none of its checkpoints can be used. `fresh` deletes it first, with its
    checkpoints. The config that is saved there is the one to train with: it keeps what decides which windows make a
    step, and the engine that `engine.name: auto` has picked, now or when the run began.
    """
    run = run_dir_of(config)
    run.pull()
    store = store_of(config, run)
    if fresh:
        _delete(run, store)
    newest = resume_point(store, by_size, warn=say)
    if newest is not None:
        _check_codes(config, store, newest)
    saved = load_saved_config(run.config_path) if run.config_path.is_file() else None
    config = _with_engine(config, saved, store, newest, say)
    if saved is not None:
        if newest is not None or _has_trained(run, store_of(saved, run)):
            config = keep_packing(saved, config)
            for change in check_changes(str(run.root), saved, config, allow_change):
                say(f"Changed: {change}")
        if newest is None:
            _refuse_to_leave(store_of(saved, run), store)
    elif newest is not None:
        config = _adopt(config, store, newest, allow_change)
    run.create(config)
    write_atomically(run.environment_path, json.dumps(environment(), indent=1))
    run.push()
    if config.train.checkpoint_dir is not None:
        store.check_writable()
    if newest is not None:
        say(f"Resuming {run.uri or run.root} from {newest}.")
    elif config.train.start_from is not None:
        _say_start(config, say)
    return run


def _with_engine(
    config: ExperimentConfig,
    saved: ExperimentConfig | None,
    store: CheckpointStore,
    newest: str | None,
    say: Callable[[str], None],
) -> ExperimentConfig:
    """The config with an engine in the place of `auto`: the run's own where it has begun, else the planner's pick."""
    if not isinstance(config.engine, AutoConfig):
        return config
    if saved is None and newest is not None and (values := read_info(store, newest).config) is not None:
        saved = config_from_dict({**values, "runs_dir": config.runs_dir}, f"the config in {store}/{newest}")
    if saved is not None and not isinstance(saved.engine, AutoConfig):
        own = {"precision": config.engine.precision, "matmul_precision": config.engine.matmul_precision}
        engine = saved.engine.model_copy(update=own)
        say(f"engine: auto keeps what the run began with, {engine_words(saved)}.")
        return config_from_dict({**config.model_dump(mode="json"), "engine": engine.model_dump(mode="json")})
    from genrec.planning.choose import pick_engine  # imports torch

    picked, sentence = pick_engine(config)
    say(sentence)
    return picked


def engine_words(config: ExperimentConfig) -> str:
    """The engine in a word or two: `ZeRO-2`, `ZeRO-2 offload`, `torch`."""
    engine = config.engine
    if not isinstance(engine, DeepSpeedConfig):
        return engine.name
    return f"ZeRO-{engine.zero_stage}" + (" offload" if engine.offload_optimizer else "")


def with_whole_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The config with whole paths: workers run in folders of their own, perhaps on other machines."""
    train = {name: whole_path(getattr(config.train, name)) for name in ("start_from", "checkpoint_dir")}
    paths: dict[str, object] = {
        "data": config.data.model_copy(update={"prepared": whole_path(config.data.prepared)}),
        "train": config.train.model_copy(update=train),
    }
    if config.semantic_ids is not None:
        codes = {"path": whole_path(config.semantic_ids.path)}
        paths["semantic_ids"] = config.semantic_ids.model_copy(update=codes)
    return config.model_copy(update=paths)


def whole_path(path: str | None) -> str | None:
    """The path as a process in another folder finds it; URIs, and None, stay."""
    return path if path is None or "://" in path else str(Path(path).absolute())


def _delete(run: RunDir, store: CheckpointStore) -> None:
    """Deletes a run and its checkpoints, wherever they are or were."""
    stores = [store]
    if run.root.exists():
        if not run.config_path.is_file():
            raise RunError(f"--fresh would delete {run.root}, which is not a run; choose another name or runs_dir.")
        stores.append(store_of(load_saved_config(run.config_path), run))
    for each in stores:
        for name in each.names():
            each.delete(name, first=STATE_FILE)
    run.delete_stored()
    if run.root.exists():
        shutil.rmtree(run.root)


def _refuse_to_leave(old: CheckpointStore, new: CheckpointStore) -> None:
    """Raises RunError when a run would begin again because its checkpoints are somewhere else."""
    if str(old) != str(new) and old.names():
        raise RunError(
            f"train.checkpoint_dir has changed: the checkpoints of this run are in {old}, and {new} has none; copy "
            "them there, set train.checkpoint_dir as it was, or start over with --fresh."
        )


def _adopt(
    config: ExperimentConfig, store: CheckpointStore, name: str, allow_change: Sequence[str]
) -> ExperimentConfig:
    """The config to go on with from a checkpoint whose run directory is on another machine, or gone."""
    info = read_info(store, name)
    if info.config is None:
        raise RunError(
            f"{store} has checkpoints of a run that does not say its config; choose another name or checkpoint_dir."
        )
    saved = config_from_dict({**info.config, "runs_dir": config.runs_dir}, f"the config in {store}/{name}")
    config = keep_packing(saved, config)
    check_changes(str(store), with_whole_paths(saved), with_whole_paths(config), allow_change)
    return config


def _say_start(config: ExperimentConfig, say: Callable[[str], None]) -> None:
    """Says how the export fits that the run begins with; raises before any worker starts when it does not."""
    from genrec.training.warm_start import check_start  # imports torch

    warm = check_start(config, load_manifest(config.data.prepared))
    if warm is not None:
        say(warm.sentence)


def _check_codes(config: ExperimentConfig, store: CheckpointStore, name: str) -> None:
    """Raises RunError when the checkpoint to go on from was trained with other codes than the config names now."""
    ids = semantic_ids_for(config, load_manifest(config.data.prepared).num_items) if config.writes_codes else None
    check_map(read_info(store, name).semantic_ids, ids, f"{store}/{name}")


def _has_trained(run: RunDir, store: CheckpointStore) -> bool:
    """Whether another config would change the meaning of something that is already there."""
    return bool(store.names() or read_metrics(run.metrics_path))


def check_fit(config: ExperimentConfig, manifest: Manifest) -> None:
    """Raises ConfigError when the model or the evaluation does not fit the data set, DataError when codes do not."""
    if config.model.name == "hstu" and config.model.time_bias and not manifest.has_times:
        raise ConfigError(
            f"model.time_bias=true needs event times, and {config.data.prepared} has none (its source gives only an "
            "order); set model.time_bias=false."
        )
    _check_inputs(config, manifest)
    _check_values(config, manifest)
    _check_heads(config, manifest)
    if config.writes_codes and config.semantic_ids is not None:
        if load_semantic_ids(config.semantic_ids.path).items_digest:  # else it does not say which items it is of
            map_for(config, config.data.prepared)
        semantic_ids_for(config, manifest.num_items)
    largest = max(config.evaluation.ks)
    if largest > manifest.num_items:
        raise ConfigError(
            f"evaluation.ks has {largest}, and the catalogue has only {manifest.num_items} items; "
            f"use cut-offs up to {manifest.num_items}."
        )


def _check_values(config: ExperimentConfig, manifest: Manifest) -> None:
    if config.loss.value_weights and not manifest.has_values:
        raise ConfigError(
            f"loss.value_weights needs the events' values, and {config.data.prepared} does not hold them; set "
            "data.source.columns.value and data.keep_values=true and prepare it again, or set loss.value_weights to "
            "false."
        )


def _check_heads(config: ExperimentConfig, manifest: Manifest) -> None:
    prepared, num_actions = config.data.prepared, len(manifest.actions)
    if config.heads.action is not None and num_actions < 2:
        raise ConfigError(
            f"heads.action needs at least two actions to tell apart, and {prepared} has {num_actions}; set "
            "data.source.columns.action and prepare it again, or set heads.action to null."
        )
    if config.heads.dwell is not None and not manifest.has_values:
        raise ConfigError(
            f"heads.dwell needs the seconds played, and {prepared} does not hold them; set data.source.columns.value "
            "and data.keep_values=true and prepare it again, or set heads.dwell to null."
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
        "processor": processor(),
        "cpus": cores(),
        **({"gpu": found} if (found := gpus()) else {}),
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
