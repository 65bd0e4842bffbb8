"""Checkpoints (contract 6): what is in one, when it counts, and which one a run continues from.

    checkpoints/step_00001000/
      state.json         step (next to train), progress, config, hashes, workers, engine, versions: written by rank 0
      rank_00000.json    names, sizes and SHA-256 of the files that this worker wrote: its last file
      engine/...         DeepSpeed's shards (torch.pt with engine.name=torch)
      finished           empty; put there once all of the above has been seen complete

A checkpoint counts when state.json and every worker's list are there and every listed file has its size; digests are
compared before a checkpoint is loaded. Anything else is named in the log, and the checkpoint before it is used.
`finished` decides nothing about that. It tells what was damaged (it once was complete) from what was never written to
its end: a run whose first checkpoint was cut by a kill starts again, a run whose checkpoints were damaged refuses to.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import ExperimentConfig
from genrec.errors import RunError
from genrec.run_dir import RunDir
from genrec.training.state import TrainState
from genrec.training.validations import Validated, protocol_of, read_results

if TYPE_CHECKING:
    from genrec.training.engine import Engine  # reading a checkpoint's state must not import torch

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
FINISHED_FILE = "finished"
_NAME = re.compile(r"^step_(\d{8,})$")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What state.json says."""

    step: int
    state: TrainState
    content_hash: str
    workers: int
    engine: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any] | None = None
    """The resolved config; None in a checkpoint of a genrec that did not write it down."""
    config_hash: str | None = None
    time_s: float | None = None
    """Unix time at which it was written."""


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a resolved config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint before step `step`."""
    return f"step_{step:08d}"


def write_checkpoint(folder: Path, engine: "Engine", info: CheckpointInfo, rank: int) -> None:
    """Writes this worker's files into `folder`, its list last; rank 0 adds state.json.

    Raises RunError, and leaves older checkpoints alone, when the disk is full or the folder cannot be written.
    """
    try:
        engine.save(folder)
        if rank == 0:
            (folder / STATE_FILE).write_text(json.dumps(asdict(info), indent=1), encoding="utf-8")
        files = {str(p.relative_to(folder)): _describe(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        (folder / _list_name(rank)).write_text(json.dumps(files, indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        if not _is_disk_error(error):
            raise
        free = shutil.disk_usage(folder).free
        raise RunError(
            f"The checkpoint before step {info.step} could not be written to {folder} ({error}; {free:,} bytes free): "
            "free some space and run the same command to resume from the checkpoint before it."
        ) from error


def publish_by_copy(source: Path, target: Path) -> None:
    """Moves one worker's files into the run's checkpoint folder, its list last."""
    target.mkdir(parents=True, exist_ok=True)
    files = [p for p in sorted(source.rglob("*")) if p.is_file()]
    for path in sorted(files, key=lambda p: p.name.startswith("rank_")):
        goal = target / path.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, goal)
    shutil.rmtree(source)


def read_info(folder: Path) -> CheckpointInfo:
    """The content of a checkpoint's state.json."""
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return CheckpointInfo(**{**values, "state": TrainState(**values["state"])})


def find_problem(folder: Path, *, digests: bool) -> str | None:
    """Why a checkpoint does not count, or None when it does."""
    try:
        workers = read_info(folder).workers
        for rank in range(workers):
            listed = json.loads((folder / _list_name(rank)).read_text(encoding="utf-8"))
            for name, expected in listed.items():
                if (folder / name).stat().st_size != expected["num_bytes"]:
                    return f"{name} has {(folder / name).stat().st_size} bytes and should have {expected['num_bytes']}"
                if digests and _describe(folder / name) != expected:
                    return f"{name} does not have the SHA-256 that it was written with"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is incomplete ({error})"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, whether they count or not."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def latest_checkpoint(
    folder: Path, *, digests: bool = False, warn: Callable[[str], None] = lambda _: None
) -> Path | None:
    """The newest checkpoint that counts; each newer one that does not is named through `warn`."""
    for path in reversed(list_checkpoints(folder)):
        problem = find_problem(path, digests=digests)
        if problem is None:
            return path
        warn(f"Checkpoint {path} is not used: {problem}.")
    return None


def resume_point(folder: Path, *, digests: bool = True, warn: Callable[[str], None] = lambda _: None) -> Path | None:
    """The checkpoint that a run goes on from; None when none has ever been finished.

    Raises RunError when some have been finished and none counts any more: starting over would throw a run away.
    """
    newest = latest_checkpoint(folder, digests=digests, warn=warn)
    if newest is None:
        finished = [path for path in list_checkpoints(folder) if (path / FINISHED_FILE).exists()]
        if finished:
            problems = "; ".join(f"{path.name}: {find_problem(path, digests=digests)}" for path in finished)
            raise RunError(
                f"No checkpoint in {folder} can be used any more ({problems}); put the files back from a copy, or "
                "start over with --fresh."
            )
    return newest


def drop_after(folder: Path, point: Path | None) -> None:
    """Deletes the checkpoints newer than `point`, which do not count: the run writes those steps again.

    What another number of workers left in a folder must not be taken for a part of the new checkpoint.
    """
    paths = list_checkpoints(folder)
    for path in paths if point is None else paths[paths.index(point) + 1 :]:
        _delete(path)


def prune_checkpoints(folder: Path, keep: int, keep_best: int = 0) -> None:
    """Keeps the newest `keep` checkpoints that count, and the `keep_best` with the best validation metric.

    While a run validates in the background, those that still wait for it are kept as well.
    The newest that counts is always kept, and so is whatever is newer: it may be about to be written. A kill leaves
    checkpoints that count or that do not, never one that seems to.
    """
    paths = list_checkpoints(folder)
    good = [path for path in paths if find_problem(path, digests=False) is None]
    if not good:
        return
    for path in good:
        (path / FINISHED_FILE).touch()
    infos = [(read_info(path), path) for path in good]
    results = read_results(RunDir(folder.parent).validations_path)
    kept = {*good[-keep:], *_best(infos, keep_best, results), *_waiting(infos, results)}
    for path in paths[: paths.index(good[-1])]:
        if path not in kept:
            _delete(path)


def _best(infos: list[tuple[CheckpointInfo, Path]], number: int, results: dict[int, Validated]) -> list[Path]:
    """The `number` best by validation metric, the earlier of two that are equal; fewer when fewer have one."""
    protocol = protocol_of(infos[-1][0].config)  # numbers of another one cannot be compared with those to come
    measured = [(metric_after(info, results), path) for info, path in infos if protocol_of(info.config) == protocol]
    known = [(metric, path) for metric, path in measured if metric is not None]
    return [path for _, path in sorted(known, key=lambda entry: -entry[0])[:number]]


def _waiting(infos: list[tuple[CheckpointInfo, Path]], results: dict[int, Validated]) -> list[Path]:
    """Those that are still to be validated; none where the run has gone on without background validations."""
    evaluation = (infos[-1][0].config or {}).get("evaluation", {})
    return [path for info, path in infos if evaluation.get("validation") == "background" and _waits(info, results)]


def _waits(info: CheckpointInfo, results: dict[int, Validated]) -> bool:
    return info.state.awaits_validation and info.step not in results


def waiting_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that count and whose background validation has no result yet, oldest first."""
    results = read_results(RunDir(folder.parent).validations_path)
    good = [path for path in list_checkpoints(folder) if find_problem(path, digests=False) is None]
    return [path for path in good if _waits(read_info(path), results)]


def metric_after(info: CheckpointInfo, results: dict[int, Validated]) -> float | None:
    """The validation metric of a checkpoint: its background result, which comes later, before what it says itself."""
    result = results.get(info.step)
    return info.state.metric if result is None or result.metric is None else result.metric


def _delete(path: Path) -> None:
    """Deletes a checkpoint; state.json goes first, so a half-deleted one never counts. A refusal only costs space."""
    try:
        (path / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("Checkpoint %s could not be deleted whole: %s", path, error)


def same_topology(info: CheckpointInfo, config: ExperimentConfig) -> bool:
    """Whether the shards of a checkpoint are those that the config's workers and engine would write."""
    return (info.workers, info.engine) == (config.cluster.workers, config.engine.model_dump(mode="json"))


def _list_name(rank: int) -> str:
    return f"rank_{rank:05d}.json"


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_disk_error(error: OSError | RuntimeError) -> bool:
    """Torch's writer turns a full disk into a RuntimeError of its own, which names the file of its zip writer."""
    return isinstance(error, OSError) or "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
