"""The command of a job: what it trains, and where its files are once it runs on machines that are not this one."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genrec.config import ExperimentConfig, load_config
from genrec.errors import ConfigError

STAYS = "."

NOT_ON_A_CLUSTER = ("submit", "jobs", "config", "status")


@dataclass(frozen=True, slots=True)
class JobCommand:
    """The words after `genrec`, the config that they name (None for commands on a run), and the run's name."""

    words: tuple[str, ...]
    config: ExperimentConfig | None
    run_name: str

    @property
    def entrypoint(self) -> str:
        """The shell command of the job."""
        return shlex.join(["python", "-m", "genrec", *self.words])


def read_command(
    words: Sequence[str], given: Mapping[str, Any], folder: Path, storage: str | None, more: Sequence[str] = ()
) -> JobCommand:
    """The command with every place on storage that outlives the job; raises ConfigError for places that do not.

    `given` are the command's parsed parameters, of which `file` and `overrides` make a config; `folder` is where paths
    begin; `more` are overrides to add. A job's own folder is a copy that goes with the cluster: what is written there
    is lost, and another job finds nothing to resume. So relative folders need `storage`, below which they then are;
    `STAYS` as storage leaves them, for commands that run in a folder which lasts.
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
    config = load_config(folder / path, overrides)
    added = [*(() if storage == STAYS else _on_storage(config, storage)), *more]
    return JobCommand((*words, *added), load_config(folder / path, [*overrides, *added]), config.name)


def _on_storage(config: ExperimentConfig, storage: str | None) -> Iterator[str]:
    places = {"runs_dir": config.runs_dir, "data.prepared": config.data.prepared}
    if config.train.checkpoint_dir is not None and not urlsplit(config.train.checkpoint_dir).scheme:
        places["train.checkpoint_dir"] = config.train.checkpoint_dir
    for setting, value in places.items():
        if not Path(str(value)).is_absolute() and not urlsplit(str(value)).scheme:
            yield f"{setting}={_below(storage, str(value), setting)}"


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
