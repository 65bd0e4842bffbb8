"""Background validations on disk: which checkpoints wait for one, and what came of those that are done.

    RUN/validations/step_00001000.json    the metrics of that checkpoint, or why there are none: `Validated`
    RUN/validations/step_00001000.tries   attempts so far, while there is no result

A checkpoint whose state.json says `awaits_validation` waits until its result is there; until then it is not pruned. A
result is written once, whole, and after the export that it led to. What a run knows of its best is computed from all
results, so it does not matter in which order they arrive, or which of them a checkpoint had already seen.

No torch here: the controller and the list of checkpoints read results too.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genrec.run_dir import write_atomically
from genrec.training.state import TrainState

logger = logging.getLogger(__name__)

_RESULT, _TRIES = ".json", ".tries"


@dataclass(frozen=True, slots=True)
class Validated:
    """What came of one validation: metrics, or a `problem` and no metric."""

    step: int
    epoch: float
    elapsed_s: float
    """Seconds of training behind the weights."""
    saved_s: float
    """Unix time at which the checkpoint was written."""
    done_s: float
    """Unix time of the result."""
    protocol: list[Any]
    """What decides whether two metrics may be compared: `protocol_of`."""
    metric: float | None = None
    """Value of `evaluation.metric`."""
    metrics: dict[str, float] = field(default_factory=dict)
    heads: dict[str, float] = field(default_factory=dict)
    """What was measured of the heads, where there are any."""
    num_users: int = 0
    seconds: float = 0.0
    """What reading the checkpoint and evaluating it took."""
    problem: str | None = None


def protocol_of(config: Mapping[str, Any] | None) -> list[Any]:
    """The settings of a resolved config that decide what a validation metric means."""
    evaluation = (config or {}).get("evaluation", {})
    return [evaluation.get(name) for name in ("metric", "filter_seen", "max_validation_users")]


def write_result(folder: Path, result: Validated) -> None:
    """Writes the result of a checkpoint, whole or not at all; its attempts no longer matter."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(result_path(folder, result.step), json.dumps(asdict(result), indent=1))
    _tries_path(folder, result.step).unlink(missing_ok=True)


def read_result(path: Path) -> Validated | None:
    """The result in a file; None, with a warning, when it is not one: its checkpoint is then validated again."""
    try:
        return Validated(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s is not the result of a validation (%s) and is not used.", path, error)
        return None


def result_path(folder: Path, step: int) -> Path:
    """Where the result of the checkpoint before step `step` is, or will be."""
    return folder / f"step_{step:08d}{_RESULT}"


def _tries_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}{_TRIES}"


def read_results(folder: Path, known: Iterable[int] = ()) -> dict[int, Validated]:
    """Results by step, oldest step first, without those that are `known`."""
    known = set(known)
    steps = sorted(int(path.stem.removeprefix("step_")) for path in folder.glob(f"step_*{_RESULT}"))
    found = {step: read_result(result_path(folder, step)) for step in steps if step not in known}
    return {step: result for step, result in found.items() if result is not None}


def drop_after(folder: Path, step: int) -> None:
    """Deletes what is said about steps after `step`: a run that goes on from there makes those steps again."""
    for path in [*folder.glob(f"step_*{_RESULT}"), *folder.glob(f"step_*{_TRIES}")]:
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink(missing_ok=True)


def forget_problems(folder: Path) -> None:
    """Lets the checkpoints whose validation failed wait again, with all their attempts."""
    for step, result in read_results(folder).items():
        if result.problem is not None:
            result_path(folder, step).unlink(missing_ok=True)
    for path in folder.glob(f"step_*{_TRIES}"):
        path.unlink(missing_ok=True)


def count_try(folder: Path, step: int) -> int:
    """Notes one more attempt, before it begins; how many there have been with it."""
    path = _tries_path(folder, step)
    tries = 1 + (int(path.read_text(encoding="utf-8")) if path.is_file() else 0)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, str(tries))
    return tries


def best_of(results: Iterable[Validated], protocol: list[Any], before: TrainState | None = None) -> tuple[float, int]:
    """The best metric and its step, of two that are equal the earlier: the one that a run in one piece would keep.

    `before` is a state whose own best counts too. The step is -1 when there is none.
    """
    known = [(r.metric, r.step) for r in results if r.metric is not None and r.protocol == protocol]
    if before is not None and before.best_metric is not None and before.best_step is not None:
        known.append((before.best_metric, before.best_step))
    return max(known, key=lambda entry: (entry[0], -entry[1]), default=(float("-inf"), -1))


def take_up(state: TrainState, results: Mapping[int, Validated], protocol: list[Any]) -> None:
    """Brings what a state says of the best up to all results, those that it has seen among them."""
    metric, step = best_of(results.values(), protocol, state)
    if step < 0:
        return
    worse = sum(r.step > step for r in results.values() if r.metric is not None and r.protocol == protocol)
    if step == state.best_step:
        worse = max(worse, state.validations_without_gain)  # validations inside the training have no file
    state.best_metric, state.best_step, state.validations_without_gain = metric, step, worse
