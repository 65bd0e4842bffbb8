"""The checkpoints of a run as a person sees them: a row each, and the one that a word means."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from genrec.errors import DataError
from genrec.run_dir import RunDir
from genrec.training.checkpoint import (
    FINISHED_FILE,
    STATE_FILE,
    CheckpointInfo,
    checkpoint_name,
    find_problem,
    latest_checkpoint,
    list_checkpoints,
    metric_after,
    read_info,
)
from genrec.training.validations import Validated, protocol_of, read_results, take_up

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


def checkpoint_rows(folder: Path, *, digests: bool) -> list[CheckpointRow]:
    """A row for every checkpoint of a run's folder of checkpoints, oldest first; `digests` reads every file whole."""
    paths = list_checkpoints(folder)
    problems = [find_problem(path, digests=digests) for path in paths]
    results = read_results(RunDir(folder.parent).validations_path)
    # A worker finishes a checkpoint before it begins the next, so one that is older than a good one was finished.
    newest_good = max((number for number, problem in enumerate(problems) if problem is None), default=-1)
    return [
        _row(path, problem, results, finished=number < newest_good or (path / FINISHED_FILE).exists())
        for number, (path, problem) in enumerate(zip(paths, problems, strict=True))
    ]


def find_checkpoint(folder: Path, word: str) -> Path:
    """The checkpoint that `word` means: a step, `latest`, or a checkpoint folder of any run.

    Raises DataError, with the steps that there are, when there is none.
    """
    if word == LATEST:
        found = latest_checkpoint(folder)
    elif word.isdecimal():
        found = folder / checkpoint_name(int(word))
    else:
        found = Path(word)
    if found is None or not found.is_dir():
        steps = [str(int(path.name.removeprefix("step_"))) for path in list_checkpoints(folder)]
        raise DataError(
            f"There is no checkpoint {word}; {folder} has "
            f"{'those before the steps ' + ', '.join(steps) if steps else 'none'} (or give a checkpoint's folder)."
        )
    return found


def engine_name(engine: dict[str, Any]) -> str:
    """`ZeRO 2 fp32`, `torch bf16`."""
    name = f"ZeRO {engine['zero_stage']}" if "zero_stage" in engine else engine["name"]
    return f"{name} {engine['precision']}"


def _row(path: Path, problem: str | None, results: dict[int, Validated], *, finished: bool) -> CheckpointRow:
    row = CheckpointRow(
        name=path.name,
        step=int(path.name.removeprefix("step_")),
        status="counts" if problem is None else "damaged" if finished else "unfinished",
        problem=problem,
        num_bytes=sum(_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names),
    )
    try:
        return replace(row, **_told(read_info(path), path, results))
    except (OSError, ValueError, KeyError, TypeError):
        return row


def _told(info: CheckpointInfo, path: Path, results: dict[int, Validated]) -> dict[str, Any]:
    until_then = {step: result for step, result in results.items() if step <= info.step}
    take_up(info.state, until_then, protocol_of(info.config))
    return {
        "epoch": info.state.epochs_done,
        "time_s": (path / STATE_FILE).stat().st_mtime if info.time_s is None else info.time_s,
        "workers": info.workers,
        "engine": engine_name(info.engine),
        "metric": metric_after(info, results),
        "best_metric": info.state.best_metric,
        "config_hash": info.config_hash,
    }


def _size(path: Path) -> int:
    """Bytes of a file; 0 for one that a training run has just deleted."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
