"""The Ray launcher: one `TorchTrainer` around `training.worker.run`. The only place that speaks Ray Train."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.cluster.resources import check_resources
from genrec.cluster.validation import close_run, validation_config
from genrec.config import ExperimentConfig, config_from_dict
from genrec.cpu_op import compile_cpu_op
from genrec.data.plan import make_plan
from genrec.data.ray_session import ensure_ray
from genrec.errors import GenrecError, PreemptedError, RewindError, RunError, full_disk
from genrec.run_dir import RunDir, write_atomically
from genrec.training.checkpoint import prune_checkpoints, read_info, resume_point
from genrec.training.validations import forget_problems

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    import ray.train

logger = logging.getLogger(__name__)

FAILURE_FILE = "failure.json"
PREEMPTED = "preempted"
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver tells every worker; plain values, so that it pickles without importing anything heavy."""

    config: dict[str, Any]
    run_root: str
    end_step: int
    started_at_s: float

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return RunDir(Path(self.run_root))


def fit(config: ExperimentConfig, run: RunDir, started_at_s: float) -> None:
    """Trains on Ray: starts or joins a cluster, and restarts workers that die from the last checkpoint.

    Raises RunError when training failed for good; the run directory then says how far it came.
    """
    if config.engine.name == "deepspeed" and not config.cluster.gpus_per_worker:
        compile_cpu_op()
    ensure_ray()
    check_resources(config)
    plan = make_plan(config)
    job = Job(
        config=_placed(config).model_dump(mode="json"),
        run_root=str(run.root.absolute()),
        end_step=plan.num_steps(config.train.max_epochs, config.train.max_steps),
        started_at_s=started_at_s,
    )
    (run.root / FAILURE_FILE).unlink(missing_ok=True)
    forget_problems(run.validations_path)
    num_preemptions = 0
    while _fit_once(config, job) == PREEMPTED:
        num_preemptions += 1
        if num_preemptions > config.cluster.max_preemptions >= 0:
            raise PreemptedError(
                f"The run was told to leave its machines more than cluster.max_preemptions "
                f"({config.cluster.max_preemptions}) times; it is saved in {run.root}, and the same command goes on."
            )
        logger.warning("%s was told to leave its machines and is saved; it goes on from there.", run.root)
    if config.evaluation.validation == "background":
        close_run(config, job.run)
    # Worker 0 prunes while others may still be uploading; now all have ended.
    prune_checkpoints(run.checkpoints_path, config.train.keep_checkpoints, config.train.keep_best)


def _fit_once(config: ExperimentConfig, job: Job) -> Any:
    """Trains until the run ends or is told to leave; what worker 0 returned. Failures are Ray Train's to restart."""
    from ray.train import TrainingFailedError

    run, failure = job.run, job.run.root / FAILURE_FILE
    # Which checkpoints there are is read from the checkpoints themselves; Ray's own list of them may be behind after a
    # kill, and belongs to one version of Ray.
    (run.checkpoints_path / SNAPSHOT_FILE).unlink(missing_ok=True)
    if config.faults.step_timeout_s is not None:
        # A stopped process cannot end itself; where the others do not notice it, Ray must.
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(max(60.0, config.faults.step_timeout_s)))
    error: TrainingFailedError | None = None
    returned = None
    try:
        returned = _trainer(config, job).fit().return_value
    except TrainingFailedError as failed:
        error = failed
    if failure.is_file():
        raise RunError(json.loads(failure.read_text(encoding="utf-8"))["message"])
    if error is not None:
        raise RunError(
            f"Training failed after {config.cluster.max_failures} restarts: {_last_line(error)}. The run is in "
            f"{run.root}; the same command resumes it from its last checkpoint."
        ) from error
    return returned


def _placed(config: ExperimentConfig) -> ExperimentConfig:
    """The config with whole paths: workers run in folders of their own, perhaps on other machines."""
    start_from = config.train.start_from
    paths = {
        "data": config.data.model_copy(update={"prepared": str(Path(config.data.prepared).absolute())}),
        "train": config.train.model_copy(
            update={"start_from": None if start_from is None else str(Path(start_from).absolute())}
        ),
    }
    return config.model_copy(update=paths)


def _trainer(config: ExperimentConfig, job: Job) -> Any:
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from genrec.cluster.torch_backend import NoticingTorchConfig

    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=NoticingTorchConfig(
            backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=cluster.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=bool(cluster.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job.run.checkpoints_path.name,
            storage_path=job.run_root,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, max_preemption_failures=cluster.max_preemptions
            ),
            worker_runtime_env={"env_vars": _worker_environment()},
        ),
        validation_config=(
            validation_config(config, job.run_root) if config.evaluation.validation == "background" else None
        ),
        datasets={"train": _DatasetFactory(job)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
    )


@dataclass(frozen=True, slots=True)
class _DatasetFactory:
    """Called by Ray Train's controller at every (re)start: the micro-batches that are still to be trained."""

    job: Job

    def __call__(self) -> "ray.data.Dataset":
        import ray.data

        from genrec.data.ray_stream import ray_dataset

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        config = config_from_dict(self.job.config)
        workers = config.cluster.workers
        try:
            newest = resume_point(self.job.run.checkpoints_path)
        except GenrecError as error:
            _record(self.job.run.root / FAILURE_FILE, error)
            return ray.data.range(workers)  # the workers end at once
        start_step = 0 if newest is None else read_info(newest).step
        if start_step >= self.job.end_step:
            return ray.data.range(workers)  # nothing is left to train; no worker reads it
        return ray_dataset(make_plan(config), start_step=start_step, end_step=self.job.end_step, workers=workers)


def _worker(loop_config: dict[str, Any]) -> str | None:
    """Ray Train's train function: builds the context and runs the worker. PREEMPTED when the run was told to leave."""
    import ray.train
    import torch

    from genrec.data.ray_stream import ray_tables, start_early
    from genrec.training.context import WorkerContext
    from genrec.training.worker import run as run_worker

    job: Job = loop_config["job"]
    failure = job.run.root / FAILURE_FILE
    if failure.is_file():
        return None  # a mistake that a restart cannot mend: end here, the driver reports it
    config = config_from_dict(job.config)
    me = ray.train.get_context()
    use_gpu = bool(config.cluster.gpus_per_worker)

    stream = start_early(ray_tables(ray.train.get_dataset_shard("train")))

    def tables(_: int) -> "Iterator[pa.Table]":
        return stream  # it starts where the newest checkpoint says; `_DatasetFactory` looked

    def publish(folder: Path, name: str, validate: bool) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"checkpoint": name}, checkpoint=checkpoint, checkpoint_dir_name=name, validation=validate)

    try:
        run_worker(
            config,
            WorkerContext(
                run=job.run,
                rank=me.get_world_rank(),
                workers=me.get_world_size(),
                device=torch.device("cuda", me.get_local_rank()) if use_gpu else torch.device("cpu"),
                launcher="ray",
                end_step=job.end_step,
                tables=tables,
                publish=publish,
                started_at_s=job.started_at_s,
                ask_cluster=lambda: ray.train.get_preemption_info() is not None,
            ),
        )
    except PreemptedError:
        return PREEMPTED  # an error would count as a failure
    except RewindError:
        raise  # Ray starts the workers again, from the last checkpoint
    except (GenrecError, OSError) as error:
        mistake = full_disk(error) if isinstance(error, OSError) else error
        if mistake is not None:
            _record(failure, mistake)
        raise
    return None


def _record(path: Path, mistake: GenrecError) -> None:
    """Tells the driver, and the workers that Ray starts next, what a restart cannot mend."""
    try:
        write_atomically(path, json.dumps({"message": str(mistake)}))
    except OSError:
        logger.exception("%s could not be written; Ray will restart the workers", path)


def _worker_environment() -> dict[str, str]:
    """Settings of this process that workers need too."""
    names = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TORCH_EXTENSIONS_DIR", "GENREC_DATA")
    return {name: os.environ[name] for name in names if name in os.environ}


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
