"""The checkpoints of a run as a person sees them: a row each, and the one that a word means."""

import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from genrec.errors import DataError
from genrec.training.checkpoint import (
    FINISHED_FILE,
    CheckpointInfo,
    find_problem,
    latest_checkpoint,
    metric_after,
    read_info,
)
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name
from genrec.training.validations import Validated, protocol_of, take_up

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint. What state.json says is None where it cannot be read."""

    name: str
    step: int
    status: Literal["counts", "damaged", "unfinished"]
    """`damaged` counted once and does not any more; `unfinished` was cut while it was written, or is being written."""
    problem: str | None
    num_bytes: int
    epoch: float | None = None
    time_s: float | None = None
    workers: int | None = None
    engine: str | None = None
    metric: float | None = None
    """Validation metric after this very step."""
    best_metric: float | None = None
    """The best one of the run until then."""
    config_hash: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class StoredCheckpoint(NamedTuple):
    """A checkpoint, and the store that it is in."""

    store: CheckpointStore
    name: str

    def __str__(self) -> str:
        return f"{self.store}/{self.name}"


def checkpoint_rows(
    store: CheckpointStore, *, digests: bool, results: Mapping[int, Validated] | None = None
) -> list[CheckpointRow]:
    """A row for every checkpoint of a store, oldest first; `digests` reads every file through.

    `results` are those of the run's background validations.
    """
    names = store.names()
    problems = [find_problem(store, name, digests=digests) for name in names]
    # A worker finishes a checkpoint before it begins the next, so one that is older than a good one was finished.
    newest_good = max((number for number, problem in enumerate(problems) if problem is None), default=-1)
    return [
        _row(store, name, problem, results or {}, older_than_good=number < newest_good)
        for number, (name, problem) in enumerate(zip(names, problems, strict=True))
    ]


def find_checkpoint(store: CheckpointStore, word: str) -> StoredCheckpoint:
    """The checkpoint that `word` means: a step, `latest`, or a checkpoint of any run by its folder or URI.

    Raises DataError, with the steps that there are, when there is none.
    """
    place: CheckpointStore = store
    name: str | None
    if word == LATEST:
        name = latest_checkpoint(store)
    elif word.isdecimal():
        name = checkpoint_name(int(word))
    else:
        parent, name = posixpath.split(word.rstrip("/"))
        place = CheckpointStore(parent or ".")
    if name is None or name not in place.names():
        steps = [str(int(name.removeprefix("step_"))) for name in store.names()]
        raise DataError(
            f"There is no checkpoint {word}; {store} has "
            f"{'those before the steps ' + ', '.join(steps) if steps else 'none'} (or give a checkpoint's folder)."
        )
    return StoredCheckpoint(place, name)


def engine_name(engine: dict[str, Any]) -> str:
    """`ZeRO 2 fp32`, `torch bf16`."""
    name = f"ZeRO {engine['zero_stage']}" if "zero_stage" in engine else engine["name"]
    return f"{name} {engine['precision']}"


def _row(
    store: CheckpointStore, name: str, problem: str | None, results: Mapping[int, Validated], *, older_than_good: bool
) -> CheckpointRow:
    sizes = store.sizes(name)
    finished = older_than_good or FINISHED_FILE in sizes
    row = CheckpointRow(
        name=name,
        step=int(name.removeprefix("step_")),
        status="counts" if problem is None else "damaged" if finished else "unfinished",
        problem=problem,
        num_bytes=sum(sizes.values()),
    )
    try:
        return replace(row, **_told(read_info(store, name), results))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return row


def _told(info: CheckpointInfo, results: Mapping[int, Validated]) -> dict[str, Any]:
    until_then = {step: result for step, result in results.items() if step <= info.step}
    take_up(info.state, until_then, protocol_of(info.config))
    return {
        "epoch": info.state.epochs_done,
        "time_s": info.time_s,
        "workers": info.workers,
        "engine": engine_name(info.engine),
        "metric": metric_after(info, results),
        "best_metric": info.state.best_metric,
        "config_hash": info.config_hash,
    }
