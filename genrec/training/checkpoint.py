"""Checkpoints (contract 6): what is in one, when it counts, and which one a run continues from.

    STORE/step_00001000/
      state.json         step (next to train), progress, config, hashes, workers, engine, versions: written by rank 0
      engine/...         DeepSpeed's shards (torch.pt with engine.name=torch)
      average.pt         with optimizer.ema_decay: the average of the weights, whole, written by rank 0
      tables.pt          with optimizer.table: accumulators of the tables, whole, written by rank 0
      rank_00000.json    names, sizes and SHA-256 of the files that this worker wrote: uploaded after them
      finished           empty; put there once all of the above has been seen complete

A checkpoint counts when state.json and every worker's list are there and every listed file has its size; digests are
compared before a checkpoint is loaded. Anything else is named in the log, and the checkpoint before it is used. A
storage that does not answer is neither: it raises StorageError, because what is only out of reach must not be deleted.
`finished` decides nothing about that. It tells what was damaged (it once was complete) from what was never written to
its end: a run whose first checkpoint was cut by a kill starts again, a run whose checkpoints were damaged refuses to.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import ExperimentConfig
from genrec.errors import RunError
from genrec.storage import stays_inside
from genrec.training.checkpoint_store import CheckpointStore, describe_stream
from genrec.training.state import TrainState
from genrec.training.validations import Validated, protocol_of

if TYPE_CHECKING:
    from genrec.training.engine import Engine  # reading a checkpoint's state must not import torch

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
FINISHED_FILE = "finished"
WRONG_DIGEST = "{} does not have the SHA-256 that it was written with"


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
    semantic_ids: str | None = None
    """Digest of the map that the model writes codes of; None when it writes none."""


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a resolved config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_checkpoint(folder: Path, engine: "Engine", info: CheckpointInfo, rank: int) -> None:
    """Writes this worker's files into a local folder; rank 0 adds state.json. All that must see the weights.

    Raises RunError, and leaves older checkpoints alone, when the disk is full or the folder cannot be written.
    """
    try:
        engine.save(folder)
        if rank == 0:
            (folder / STATE_FILE).write_text(json.dumps(asdict(info), indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        if not _is_disk_error(error):
            raise
        free = shutil.disk_usage(folder).free
        raise RunError(
            f"The checkpoint before step {info.step} could not be written to {folder} ({error}; {free:,} bytes free): "
            "free some space and run the same command to resume from the checkpoint before it."
        ) from error


def upload_checkpoint(store: CheckpointStore, folder: Path, name: str, rank: int) -> None:
    """Puts the files of one worker into the store, its list of them last.

    It can be done again after it has failed, and needs nothing of the other workers. Raises StorageError, or RunError
    when a disk is full; checkpoints before it still count.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            files[str(path.relative_to(folder))] = describe_stream(stream)
    store.upload(folder, name)
    store.write(name, list_name(rank), json.dumps(files, indent=1).encode())


def read_info(store: CheckpointStore, name: str) -> CheckpointInfo:
    """The content of a checkpoint's state.json."""
    return _info(store.read(name, STATE_FILE))


def info_in(folder: Path) -> CheckpointInfo:
    """`read_info` of a checkpoint whose files are in a local folder."""
    return _info((folder / STATE_FILE).read_bytes())


def _info(content: bytes) -> CheckpointInfo:
    values = json.loads(content)
    return CheckpointInfo(**{**values, "state": TrainState(**values["state"])})


def listed_files(store: CheckpointStore, name: str) -> dict[str, dict[str, Any]]:
    """Sizes and SHA-256 of the files of all workers, as their lists have them; ValueError when one is elsewhere."""
    files: dict[str, dict[str, Any]] = {}
    for rank in range(read_info(store, name).workers):
        files |= json.loads(store.read(name, list_name(rank)))
    if outside := [file for file in files if not stays_inside(file)]:
        raise ValueError(f"a list names {outside[0]!r}, outside of the checkpoint")
    return files


def find_problem(store: CheckpointStore, name: str, *, digests: bool) -> str | None:
    """Why a checkpoint does not count, or None when it does; `digests` reads every file through."""
    try:
        sizes = store.sizes(name)
        for file, expected in listed_files(store, name).items():
            if file not in sizes:
                return f"it is incomplete ({file} is missing)"
            if sizes[file] != expected["num_bytes"]:
                return f"{file} has {sizes[file]} bytes and should have {expected['num_bytes']}"
            if digests and store.describe(name, file) != expected:
                return WRONG_DIGEST.format(file)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return f"it is incomplete ({error})"
    return None


Check = Callable[[CheckpointStore, str], str | None]
"""Says why a checkpoint does not count, or None: `by_size`, `by_digest`, or `checkpoint_fetch.by_fetching`."""


def by_size(store: CheckpointStore, name: str) -> str | None:
    """`find_problem` without reading the files."""
    return find_problem(store, name, digests=False)


def by_digest(store: CheckpointStore, name: str) -> str | None:
    """`find_problem` with reading every file through."""
    return find_problem(store, name, digests=True)


def latest_checkpoint(
    store: CheckpointStore, check: Check = by_size, warn: Callable[[str], None] = lambda _: None
) -> str | None:
    """The newest checkpoint that counts; each newer one that does not is named through `warn`."""
    for name in reversed(store.names()):
        problem = check(store, name)
        if problem is None:
            return name
        warn(f"Checkpoint {store}/{name} is not used: {problem}.")
    return None


def resume_point(
    store: CheckpointStore, check: Check = by_digest, warn: Callable[[str], None] = lambda _: None
) -> str | None:
    """The checkpoint that a run goes on from; None when none has ever been finished.

    Raises RunError when some have been finished and none counts any more: starting over would throw a run away.
    """
    newest = latest_checkpoint(store, check, warn)
    if newest is None:
        finished = [name for name in store.names() if FINISHED_FILE in store.sizes(name)]
        if finished:
            problems = "; ".join(f"{name}: {check(store, name)}" for name in finished)
            raise RunError(
                f"No checkpoint in {store} can be used any more ({problems}); put the files back from a copy, or "
                "start over with --fresh."
            )
    return newest


def drop_after(store: CheckpointStore, point: str | None) -> None:
    """Deletes the checkpoints newer than `point`, which do not count: the run writes those steps again.

    What another number of workers left in a folder must not be taken for a part of the new checkpoint.
    """
    names = store.names()
    for name in names if point is None else names[names.index(point) + 1 :]:
        store.delete(name, STATE_FILE)


def prune_checkpoints(
    store: CheckpointStore, keep: int, keep_best: int = 0, results: Mapping[int, Validated] | None = None
) -> None:
    """Keeps the newest `keep` checkpoints that count, and the `keep_best` with the best validation metric.

    While a run validates in the background, `results` are what is known of it; those that still wait are kept as well.
    The newest that counts is always kept, and so is whatever is newer: it may be about to be written. A kill leaves
    checkpoints that count or that do not, never one that seems to. A storage that refuses only costs space.
    """
    results = results or {}
    try:
        names = store.names()
        good = [name for name in names if by_size(store, name) is None]
        if not good:
            return
        for name in good:
            if FINISHED_FILE not in store.sizes(name):
                store.write(name, FINISHED_FILE, b"")
        infos = [(read_info(store, name), name) for name in good]
        kept = {*good[-keep:], *_best(infos, keep_best, results), *_waiting(infos, results)}
        for name in names[: names.index(good[-1])]:
            if name not in kept:
                store.delete(name, STATE_FILE)
    except (RunError, FileNotFoundError) as error:
        logger.warning("Checkpoints that are not kept could not all be deleted: %s", error)


def _best(infos: list[tuple[CheckpointInfo, str]], number: int, results: Mapping[int, Validated]) -> list[str]:
    """The `number` best by validation metric, the earlier of two that are equal; fewer when fewer have one."""
    protocol = protocol_of(infos[-1][0].config)  # numbers of another one cannot be compared with those to come
    measured = [(metric_after(info, results), name) for info, name in infos if protocol_of(info.config) == protocol]
    known = [(metric, name) for metric, name in measured if metric is not None]
    return [name for _, name in sorted(known, key=lambda entry: -entry[0])[:number]]


def _waiting(infos: list[tuple[CheckpointInfo, str]], results: Mapping[int, Validated]) -> list[str]:
    """Those that are still to be validated; none where the run has gone on without background validations."""
    evaluation = (infos[-1][0].config or {}).get("evaluation", {})
    return [name for info, name in infos if evaluation.get("validation") == "background" and _waits(info, results)]


def _waits(info: CheckpointInfo, results: Mapping[int, Validated]) -> bool:
    return info.state.awaits_validation and info.step not in results


def waiting_checkpoints(store: CheckpointStore, results: Mapping[int, Validated]) -> list[str]:
    """The checkpoints that count and whose background validation has no result yet, oldest first."""
    good = [name for name in store.names() if by_size(store, name) is None]
    return [name for name in good if _waits(read_info(store, name), results)]


def metric_after(info: CheckpointInfo, results: Mapping[int, Validated]) -> float | None:
    """The validation metric of a checkpoint: its background result, which comes later, before what it says itself."""
    result = results.get(info.step)
    return info.state.metric if result is None or result.metric is None else result.metric


NOT_IN_SHARDS = ("matmul_precision",)
"""Settings of an engine that do not decide what its shards hold."""


def same_topology(info: CheckpointInfo, config: ExperimentConfig, workers: int) -> bool:
    """Whether the shards of a checkpoint are those that `workers` with the config's engine would write."""
    saved, now = (
        {k: v for k, v in e.items() if k not in NOT_IN_SHARDS} for e in (info.engine, config.engine.model_dump())
    )
    return (info.workers, saved) == (workers, now)


def list_name(rank: int) -> str:
    """File name of a worker's list."""
    return f"rank_{rank:05d}.json"


def _is_disk_error(error: OSError | RuntimeError) -> bool:
    """Torch's writer turns a full disk into a RuntimeError of its own, which names the file of its zip writer."""
    return isinstance(error, OSError) or "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
