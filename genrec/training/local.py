"""The launcher without Ray: this process is the worker, or one of `torchrun`'s."""

import gc
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist

from genrec.config import DeepSpeedConfig, ExperimentConfig
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables
from genrec.errors import ConfigError, RewindError
from genrec.run_dir import RunDir, load_saved_config
from genrec.training.background import in_background
from genrec.training.checkpoint_store import store_of
from genrec.training.context import WorkerContext
from genrec.training.preemption import signals_as_notices
from genrec.training.start import check_launcher
from genrec.training.worker import run as run_worker

logger = logging.getLogger(__name__)


Work = Callable[[ExperimentConfig, WorkerContext], None]
"""What a worker does; a benchmark gives another work than training."""


def fit(config: ExperimentConfig, run: RunDir, started_at_s: float, *, profile: bool = False) -> None:
    """Trains in this process; under `torchrun`, as one of its workers."""
    run_work(run_worker, config, run, started_at_s, profile=profile)


def run_work(work: Work, config: ExperimentConfig, run: RunDir, started_at_s: float, *, profile: bool = False) -> None:
    """Makes this process a worker and does `work` as one; see `fit`."""
    check_launcher(config, "local")
    rank, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    fewest, most = config.cluster.min_workers, config.cluster.max_workers
    if not fewest <= workers <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ConfigError(
            f"--launcher local runs {workers} worker{'s' if workers > 1 else ''} here, and cluster.workers is "
            f"{wanted}; set cluster.workers={workers}, or start {wanted} with torchrun."
        )
    device = pick_device(config, int(os.environ.get("LOCAL_RANK", "0")))
    # Meeting the other workers comes first: rank 0 has then prepared the data and opened the run directory.
    started_group = _start_process_group(config, device, rank, workers)
    if rank:
        run.pull()
    config = load_saved_config(run.config_path)
    plan = make_plan(config)
    end_step = plan.num_steps(config.train.max_epochs, config.train.max_steps, config.train.min_steps)

    def tables(start_step: int) -> Iterator[pa.Table]:
        return local_tables(plan, start_step=start_step, end_step=end_step, rank=rank, workers=workers)

    def publish(folder: Path, name: str, upload: Callable[[], None], _: bool) -> Future[None]:
        return in_background(
            upload, name=f"upload of {name}", finally_=lambda: shutil.rmtree(folder, ignore_errors=True)
        )

    context = WorkerContext(
        run=run,
        rank=rank,
        workers=workers,
        device=device,
        launcher="local",
        end_step=end_step,
        tables=tables,
        store=store_of(config, run),
        publish=publish,
        started_at_s=started_at_s,
        profile=profile,
    )
    try:
        with signals_as_notices():
            _run_until_done(config, context, work)
    finally:
        if started_group:
            dist.destroy_process_group()


def _run_until_done(config: ExperimentConfig, context: WorkerContext, work: Work) -> None:
    while True:
        try:
            return work(config, context)
        except RewindError as error:
            logger.warning("%s", str(error))  # the error itself knows the engine
        gc.collect()  # the engine that is given up holds itself in a circle, and its memory with it
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def pick_device(config: ExperimentConfig, local_rank: int) -> torch.device:
    """The GPU that the config asks for, else the CPU; raises ConfigError when there is no GPU."""
    if not config.cluster.gpus_per_worker:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"cluster.gpus_per_worker is {config.cluster.gpus_per_worker} and torch {torch.__version__} sees no GPU "
            "here; install a CUDA build of torch, or set cluster.gpus_per_worker=0."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _start_process_group(config: ExperimentConfig, device: torch.device, rank: int, workers: int) -> bool:
    """Makes the process group when one is needed and there is none; says whether it did."""
    if dist.is_initialized() or (workers == 1 and not isinstance(config.engine, DeepSpeedConfig)):
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=config.cluster.collective_timeout_s)
    if workers > 1:
        dist.init_process_group(backend, timeout=timeout)
        return True
    # DeepSpeed reads these even when the group is there already.
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it without saying so
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)
    return True
