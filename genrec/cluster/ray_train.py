"""The Ray launcher: one `TorchTrainer` around `training.worker.run`. The only place that speaks Ray Train."""

import logging
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from genrec.cluster.mistakes import (
    FAILURE_FILE,
    STORAGE_FILE,
    expect_mistakes,
    message_of,
    record,
    record_mistake,
)
from genrec.cluster.ray_upload import publish
from genrec.cluster.reservation import note_reservation
from genrec.cluster.resources import check_resources, data_cpus_reserved
from genrec.cluster.validation import close_run, validation_config
from genrec.config import ExperimentConfig, config_from_dict
from genrec.cpu_op import compile_cpu_op
from genrec.data.plan import PlanSpec, make_plan
from genrec.data.ray_session import ensure_ray
from genrec.errors import GenrecError, PreemptedError, RunError, StorageError
from genrec.log_lines import log_worker_to_stderr
from genrec.run_dir import RunDir, load_saved_config, run_dir_at
from genrec.training.checkpoint import read_info, resume_point
from genrec.training.checkpoint_store import CheckpointStore, store_of
from genrec.training.start import with_whole_paths
from genrec.training.validations import forget_problems

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    import ray.train

logger = logging.getLogger(__name__)

PREEMPTED = "preempted"
WORKER_GROUP_START_S = 60.0
"""Ray Train's own limit for the start of all workers."""
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver tells every worker; plain values, so that it pickles without importing anything heavy."""

    config: dict[str, Any]
    run_root: str
    end_step: int
    started_at_s: float
    profile: bool = False

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return run_dir_at(self.run_root)

    @property
    def store(self) -> CheckpointStore:
        """Where the run's checkpoints are."""
        return store_of(config_from_dict(self.config), self.run)


def fit(config: ExperimentConfig, run: RunDir, started_at_s: float, *, profile: bool = False) -> None:
    """Trains on Ray: starts or joins a cluster, and restarts workers that die from the last checkpoint.

    Raises RunError when training failed for good; the run directory then says how far it came.
    """
    config = load_saved_config(run.config_path)
    if config.engine.name == "deepspeed" and not config.cluster.gpus_per_worker:
        compile_cpu_op()
    ensure_ray()
    check_resources(config, also_free=True)
    plan = make_plan(config)
    job = Job(
        config=with_whole_paths(config).model_dump(mode="json"),
        run_root=run.place,
        end_step=plan.num_steps(config.train.max_epochs, config.train.max_steps, config.train.min_steps),
        started_at_s=started_at_s,
        profile=profile,
    )
    expect_mistakes(run)
    forget_problems(run.validations_path)
    with data_cpus_reserved(config, requester=f"data of {job.run_root}"):
        _fit_until_done(config, job, plan.spec)
    run.pull()  # worker 0 may have been on another machine
    if config.evaluation.validation == "background":
        close_run(config_from_dict(job.config), job.run)


def _fit_until_done(config: ExperimentConfig, job: Job, spec: PlanSpec) -> None:
    run, num_preemptions = job.run, 0
    while _fit_once(config, job, spec) == PREEMPTED:
        num_preemptions += 1
        if num_preemptions > config.cluster.max_preemptions >= 0:
            raise PreemptedError(
                f"The run was told to leave its machines more than cluster.max_preemptions "
                f"({config.cluster.max_preemptions}) times; it is saved in {run.root}, and the same command goes on."
            )
        logger.warning("%s was told to leave its machines and is saved; it goes on from there.", run.root)


def _fit_once(config: ExperimentConfig, job: Job, spec: PlanSpec) -> Any:
    """Trains until the run ends or is told to leave; what worker 0 returned. Failures are Ray Train's to restart."""
    from ray.train import TrainingFailedError

    run, failure = job.run, job.run.root / FAILURE_FILE
    # Which checkpoints there are is read from the checkpoints themselves; Ray's own list of them may be behind after a
    # kill, and belongs to one version of Ray.
    job.store.delete_file(SNAPSHOT_FILE)
    if config.faults.step_timeout_s is not None:
        # A stopped process cannot end itself; where the others do not notice it, Ray must.
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(max(60.0, config.faults.step_timeout_s)))
    if config.cluster.min_workers != config.cluster.max_workers:
        # Ray's view of the machines is up to 20 s old: workers that do not fit any more are asked for again, fewer.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    elif config.placement.wait_s > WORKER_GROUP_START_S:
        # The machines are there; what others hold of them may become free in the same time.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{config.placement.wait_s:g}")
    error: TrainingFailedError | None = None
    returned = None
    try:
        returned = _trainer(config, job, spec).fit().return_value
    except TrainingFailedError as failed:
        error = failed
    if failure.is_file():
        raise RunError(message_of(failure))
    if error is not None:
        raise RunError(
            f"Training failed after {config.cluster.max_failures} restarts: {_last_line(error)}. The run is in "
            f"{run.root}; the same command resumes it from its last checkpoint."
        ) from error
    return returned


def _trainer(config: ExperimentConfig, job: Job, spec: PlanSpec) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from genrec.cluster.stream_config import StreamConfig
    from genrec.cluster.torch_backend import NoticingTorchConfig

    cluster = config.cluster
    store_parent, store_name = posixpath.split(job.store.root)
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
            num_workers=cluster.workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_check_s,
            placement_strategy=config.placement.strategy,
            label_selector=config.placement.worker_labels,
        ),
        run_config=RunConfig(
            name=store_name,
            storage_path=store_parent,
            storage_filesystem=job.store.filesystem,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, max_preemption_failures=cluster.max_preemptions
            ),
            worker_runtime_env={"env_vars": worker_environment()},
        ),
        validation_config=(
            validation_config(config_from_dict(job.config), job.run_root)
            if config.evaluation.validation == "background"
            else None
        ),
        datasets={"train": _DatasetFactory(job)},
        dataset_config=StreamConfig(spec, config.placement.data_labels),
    )


@dataclass(frozen=True, slots=True)
class _DatasetFactory:
    """Called by Ray Train's controller at every (re)start: the chunks that are still to be trained."""

    job: Job

    def __call__(self) -> "ray.data.Dataset":
        import ray.data

        from genrec.data.ray_stream import remaining_chunks

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        config = config_from_dict(self.job.config)
        end_step = self.job.end_step
        (self.job.run.root / STORAGE_FILE).unlink(missing_ok=True)
        try:
            store = self.job.store
            newest = resume_point(store)
            start_step = 0 if newest is None else read_info(store, newest).step
        except GenrecError as error:
            # An error here would end the run; one of the workers counts as a failure that Ray may restart.
            record(self.job.run.root / (STORAGE_FILE if isinstance(error, StorageError) else FAILURE_FILE), error)
            start_step = end_step  # the workers end at once
        return remaining_chunks(make_plan(config), start_step=start_step, end_step=end_step)


def _worker(loop_config: dict[str, Any]) -> str | None:
    """Ray Train's train function: builds the context and runs the worker. PREEMPTED when the run was told to leave."""
    import ray.train
    import torch

    from genrec.cluster.ray_metrics import RayMetrics
    from genrec.data.ray_stream import ray_tables, start_early
    from genrec.training.context import WorkerContext
    from genrec.training.worker import run as run_worker

    job: Job = loop_config["job"]
    job.run.pull()
    failure = job.run.root / FAILURE_FILE
    if failure.is_file():
        return None  # a mistake that a restart cannot mend: end here, the driver reports it
    if (job.run.root / STORAGE_FILE).is_file():
        raise StorageError(message_of(job.run.root / STORAGE_FILE))
    config = config_from_dict(job.config)
    log_worker_to_stderr(config.tracking.log_format)
    me = ray.train.get_context()
    use_gpu = bool(config.cluster.gpus_per_worker)

    stream = start_early(ray_tables(ray.train.get_dataset_shard("train")))

    def tables(_: int) -> "Iterator[pa.Table]":
        return stream  # it starts where the newest checkpoint says; `_DatasetFactory` looked

    try:
        if me.get_world_rank() == 0:
            note_reservation(job.run)
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
                store=job.store,
                publish=partial(publish, partial(record_mistake, failure)),
                started_at_s=job.started_at_s,
                ask_cluster=lambda: ray.train.get_preemption_info() is not None,
                profile=job.profile,
                measure=RayMetrics(job.run.root.name, me.get_world_rank()),
            ),
        )
        if me.get_world_rank() == 0:
            job.run.push()
    except PreemptedError:
        return PREEMPTED  # an error would count as a failure
    except (GenrecError, OSError) as error:
        record_mistake(failure, error)
        raise
    return None


def worker_environment() -> dict[str, str]:
    """Settings of this process that workers need too. No credentials of storage: Ray logs and shows these."""
    genrec = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TORCH_EXTENSIONS_DIR", "GENREC_DATA", "GENREC_COPIES")
    trust = ("GENREC_TRUST_CHECKPOINTS",)
    storage = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "GOOGLE_APPLICATION_CREDENTIALS")
    return {name: os.environ[name] for name in (*genrec, *trust, *storage) if name in os.environ}


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
