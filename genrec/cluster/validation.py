"""Background validations on Ray: what Ray Train's validation function does, and how a run's books are closed.

Ray Train starts one task at a time for the checkpoints that the workers reported for validation, and waits for the last
of them before a run ends. A killed command loses that list; the checkpoints and validations/ on disk tell what is
missing, and `close_run` makes up for it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genrec.config import ExperimentConfig
from genrec.data.ray_session import call_task
from genrec.errors import RunError
from genrec.run_dir import RunDir
from genrec.training.checkpoint import latest_checkpoint, prune_checkpoints, read_info, waiting_checkpoints
from genrec.training.checkpoint_list import StoredCheckpoint
from genrec.training.checkpoint_store import store_in, store_of
from genrec.training.state import TrainState
from genrec.training.tracking import start_tracker
from genrec.training.validation_books import Books, write_failure
from genrec.training.validations import best_of, protocol_of, read_results

if TYPE_CHECKING:
    import ray.train
    import torch

logger = logging.getLogger(__name__)

START_S = 600.0
"""What a task may wait for its CPUs and its process, besides its own time-out: the end of one that never starts."""

MAX_RETRIES = 3
"""Times a task after the training is started again because its process was killed."""


def validation_config(config: ExperimentConfig, run_root: str) -> "ray.train.ValidationConfig":
    """What Ray Train has to know: the function, its resources and its limits.

    A task whose process is killed is started again without end, because Ray Train takes an error of it for one of its
    own and ends the run. The function itself counts the attempts, and the third is the last.
    """
    from ray.train import ValidationConfig, ValidationTaskConfig

    timeout_s = config.evaluation.validation_timeout_s
    arguments = {
        "run_root": run_root,
        "checkpoint_dir": config.train.checkpoint_dir,
        "timeout_s": timeout_s,
        "place": _place(config),
    }
    return ValidationConfig(
        fn=_validate_reported,
        task_config=ValidationTaskConfig(fn_kwargs=arguments, timeout_s=timeout_s + START_S),
        ray_remote_kwargs=_resources(config) | {"max_retries": -1},
    )


def close_run(config: ExperimentConfig, run: RunDir) -> None:
    """After the workers: what still waits is validated, the books are completed, and the best model is evaluated.

    Raises RunError when no validation of the run has succeeded, or the final evaluation has not.
    """
    store = store_of(config, run)
    newest = latest_checkpoint(store, warn=logger.warning)
    state = TrainState() if newest is None else read_info(store, newest).state
    timeout_s = config.evaluation.validation_timeout_s
    task = _Task(str(run.root.absolute()), config.train.checkpoint_dir, timeout_s, _place(config))
    tracker = start_tracker(config, run.metrics_path, state.tracker_id)
    try:
        books = Books(config, run, tracker, state)
        books.look(state)
        for name in waiting_checkpoints(store, books.results):
            checkpoint = StoredCheckpoint(store, name)
            logger.info("%s still waits for its validation.", checkpoint)
            what = f"The validation of {checkpoint}"
            try:
                _in_task(config, what, _validate, task._replace(name=name), timeout_s)
            except RunError as error:
                write_failure(run, checkpoint, str(error))
            books.look(state)
    finally:
        tracker.close()
    # The workers kept what waited.
    prune_checkpoints(store, config.train.keep_checkpoints, config.train.keep_best, books.results)
    _check_validated(config, run, state)
    _in_task(config, f"The final evaluation of {run.root}", _evaluate, task, 2 * timeout_s)  # validation and test


def _check_validated(config: ExperimentConfig, run: RunDir, state: TrainState) -> None:
    results = read_results(run.validations_path)
    protocol = protocol_of(config.model_dump(mode="json"))
    if best_of(results.values(), protocol, state)[1] >= 0:
        return
    problems = [f"step {step}: {result.problem}" for step, result in results.items() if result.problem is not None]
    raise RunError(
        f"No validation of {run.root} has succeeded ({problems[-1] if problems else 'none was asked for'}); it is "
        "trained and saved: mend that, and the same command validates again."
    )


def _validate_reported(
    checkpoint: "ray.train.Checkpoint", *, run_root: str, checkpoint_dir: str | None, timeout_s: float, place: list[int]
) -> dict[str, float]:
    """Ray Train's validation function: the metrics of a checkpoint that all workers have committed."""
    return _validate(_Task(run_root, checkpoint_dir, timeout_s, place, Path(checkpoint.path).name))


class _Task(NamedTuple):
    run_root: str
    checkpoint_dir: str | None
    timeout_s: float
    place: list[int]
    name: str = ""
    """Of the checkpoint."""


def _validate(task: _Task) -> dict[str, float]:
    from genrec.training.checkpoint_validation import validate_checkpoint

    run = RunDir(Path(task.run_root))
    checkpoint = StoredCheckpoint(store_in(task.checkpoint_dir, run), task.name)
    return validate_checkpoint(checkpoint, run, _device(task.place), task.timeout_s).metrics


def _evaluate(task: _Task) -> None:
    from genrec.evaluation.run_evaluation import evaluate_run

    evaluate_run(RunDir(Path(task.run_root)), ("validation", "test"), device=_device(task.place))


def _in_task(
    config: ExperimentConfig, what: str, function: Callable[[_Task], object], task: _Task, limit_s: float
) -> None:
    """`function(task)` as a Ray task with the resources of a validation; raises RunError when its process is killed
    again and again, or time is up, and the user's mistake as it is."""
    import ray

    running = ray.remote(call_task).options(**_resources(config), max_retries=MAX_RETRIES).remote(function, task)
    try:
        _, mistake = ray.get(running, timeout=limit_s + START_S)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(running, force=True)
        raise RunError(
            f"{what} did not start within {START_S:g} s, or took longer than {limit_s:g} s; raise "
            "evaluation.validation_timeout_s or cluster.validation_cpus, and run the same command again."
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(f"{what} failed on the cluster ({error}); run the same command again.") from error
    if mistake is not None:
        raise mistake


def _resources(config: ExperimentConfig) -> dict[str, float]:
    return {"num_cpus": config.cluster.validation_cpus, "num_gpus": config.cluster.validation_gpus}


def _place(config: ExperimentConfig) -> list[int]:
    """Threads, and whether there is a GPU; plain values, because Ray Train writes them down as JSON."""
    return [max(1, int(config.cluster.validation_cpus)), int(config.cluster.validation_gpus > 0)]


def _device(place: list[int]) -> "torch.device":
    """Where a task computes; it also sets how many threads it may use."""
    import torch

    threads, use_gpu = place
    torch.set_num_threads(threads)
    return torch.device("cuda" if use_gpu else "cpu")
