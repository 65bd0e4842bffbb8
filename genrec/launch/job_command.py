"""The command of a job: what it runs, and where its files are once it runs on machines that are not this one."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genrec.bench.matrix import cases_of, load_matrix, output_of
from genrec.config import ExperimentConfig, load_config
from genrec.config_errors import read_yaml
from genrec.errors import ConfigError
from genrec.overrides import parse_override
from genrec.tuning.config import MAP, SweepConfig, load_sweep

STAYS = "."
PREPARED = "data.prepared"

NOT_ON_A_CLUSTER = ("submit", "jobs", "config", "status")


@dataclass(frozen=True, slots=True)
class JobCommand:
    """The words after `genrec`, what they train (None for commands on a run and for a matrix of many configs), the
    run's name, and the files that the command reads besides, relative to the folder that is shipped.
    """

    words: tuple[str, ...]
    config: ExperimentConfig | None
    run_name: str
    files: tuple[Path, ...] = ()

    @property
    def entrypoint(self) -> str:
        """The shell command of the job."""
        return shlex.join(["python", "-m", "genrec", *self.words])


def read_command(
    words: Sequence[str], given: Mapping[str, Any], folder: Path, storage: str | None, more: Sequence[str] = ()
) -> JobCommand:
    """The command with every place on storage that outlives the job; raises ConfigError for places that do not.

    `given` are the command's parsed parameters, of which `file` and `overrides` make a config, a sweep or a matrix;
    `folder` is where paths begin; `more` are overrides to add. A job's own folder is a copy that goes with the cluster:
    what is written there is lost, and another job finds nothing to resume. So relative folders need `storage`, below
    which they then are; `STAYS` as storage leaves them, for commands that run in a folder which lasts.
    """
    config_file = given.get("file")
    if config_file is None:
        moved = dict(_moved_paths(given, storage))
        names = [Path(str(path)).name for path in moved]
        return JobCommand(tuple(moved.get(word, word) for word in words), None, names[0] if names else words[0])
    path = Path(config_file)
    if path.is_absolute():
        raise ConfigError(
            f"Config {path} must be named relative to the folder that is shipped; give its path in there."
        )
    overrides = list(given.get("overrides") or [])
    if words[0] == "tune":
        return _sweep_command(words, path, overrides, folder, storage, more)
    if words[0] == "bench":
        return _matrix_command(words, given, path, folder, storage)
    config = load_config(folder / path, overrides)
    added = [*(() if storage == STAYS else _on_storage(config, storage)), *more]
    return JobCommand((*words, *added), load_config(folder / path, [*overrides, *added]), config.name, (path,))


def _sweep_command(
    words: Sequence[str], path: Path, overrides: list[str], folder: Path, storage: str | None, more: Sequence[str]
) -> JobCommand:
    """A sweep's folder and its data set below `storage`; `more` are settings of its trials."""
    sweep, base = load_sweep(folder / path, overrides)
    fixed = {".".join(keys): value for keys, value in map(parse_override, more)}
    added = []
    if storage != STAYS:
        _refuse_relative_maps(path, sweep, base)
        if not Path(sweep.sweeps_dir).is_absolute():
            added.append(f"sweeps_dir={_below(storage, sweep.sweeps_dir, 'sweeps_dir')}")
        fixed |= _made_on_storage(base, storage)
    if fixed:
        added.append(f"fixed={json.dumps({**sweep.fixed, **fixed})}")
    _, base = load_sweep(folder / path, [*overrides, *added])
    return JobCommand((*words, *added), base, sweep.name, (path, path.parent / sweep.base))


def _refuse_relative_maps(path: Path, sweep: SweepConfig, base: ExperimentConfig) -> None:
    """Raises ConfigError for a sweep over maps of codes that a job would look for in its copy, the base's included."""
    if MAP not in sweep.space or base.semantic_ids is None:
        return
    searched = [(f"space.{MAP}", place) for place in sweep.space[MAP].choice or ()]
    for what, place in [*searched, (f"{MAP} of its base, which is trial 0", base.semantic_ids.path)]:
        if _is_relative(str(place)):
            raise ConfigError(
                f"{path}: {what} ({place}) is relative, and a job's folder is a copy that goes with the cluster; make "
                "the maps before, with `genrec submit -- tokenize`, and give their absolute paths."
            )


def _matrix_command(
    words: Sequence[str], given: Mapping[str, Any], path: Path, folder: Path, storage: str | None
) -> JobCommand:
    """A matrix's result and its data sets below `storage`."""
    matrix = load_matrix(folder / path, given.get("overrides"))
    files: tuple[Path, ...] = (path,)
    if isinstance(matrix.base, str):
        files += (Path(matrix.base),)
        matrix = matrix.model_copy(update={"base": read_yaml(folder / matrix.base)})
    added = []
    fixed: dict[str, str] = {}
    for case in cases_of(matrix, str(path)):
        moved = {} if storage == STAYS else _made_on_storage(case.config, storage)
        for setting in moved:
            if setting in case.overrides:
                raise ConfigError(
                    f"{path}, case {case.name}: {setting} ({_made(case.config)[setting]}) is relative, and a job's "
                    "folder is a copy that goes with the cluster; give an absolute path."
                )
        fixed |= moved
    if fixed:
        added.append(f"fixed={json.dumps({**matrix.fixed, **fixed})}")
    output = Path(given.get("output") or output_of(matrix))
    if storage != STAYS and not output.is_absolute():
        added += ["--output", _below(storage, str(output), "the result")]
    return JobCommand((*words, *added), None, matrix.name, files)


def _made(config: ExperimentConfig) -> dict[str, str]:
    """The relative folders of what training makes where it is missing: the prepared data set, and the map of codes."""
    places = {PREPARED: config.data.prepared}
    if config.semantic_ids is not None:
        places[MAP] = config.semantic_ids.path
    return {setting: place for setting, place in places.items() if _is_relative(place)}


def _made_on_storage(config: ExperimentConfig, storage: str | None) -> dict[str, str]:
    """The settings of `_made` below the storage, which is a folder (launch/options.py)."""
    return {setting: _below(storage, place, setting) for setting, place in _made(config).items()}


def _on_storage(config: ExperimentConfig, storage: str | None) -> Iterator[str]:
    """Overrides for the relative folders that a config names."""
    places = {"runs_dir": config.runs_dir}
    if config.train.checkpoint_dir is not None and not urlsplit(config.train.checkpoint_dir).scheme:
        places["train.checkpoint_dir"] = config.train.checkpoint_dir
    for setting, value in places.items():
        if _is_relative(value):
            yield f"{setting}={_below(storage, value, setting)}"
    for setting, place in _made_on_storage(config, storage).items():
        yield f"{setting}={place}"


def _is_relative(place: str) -> bool:
    return not Path(place).is_absolute() and not urlsplit(place).scheme


def _moved_paths(given: Mapping[str, Any], storage: str | None) -> Iterator[tuple[str, str]]:
    for name in ("run", "runs", "data", "rerank", "map"):
        value = given.get(name)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                absolute = path.is_absolute() or bool(urlsplit(str(path)).scheme)
                yield str(path), str(path) if absolute else _below(storage, str(path), name)


def _below(storage: str | None, path: str, what: str) -> str:
    if storage is None:
        raise ConfigError(
            f"{what} ({path}) is relative, and a job's folder is a copy that goes with the cluster; add --storage "
            "/FOLDER, one that all its machines share, or give an absolute path."
        )
    return f"{storage.rstrip('/')}/{path}"
