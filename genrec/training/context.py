"""What a launcher gives a worker: who it is, where its data comes from, and where its checkpoints go."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from genrec.run_dir import RunDir
from genrec.training.checkpoint_store import CheckpointStore


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """One worker of a run. A launcher (cluster/ray_train.py, training/local.py) builds it; nothing in it is Ray."""

    run: RunDir
    rank: int
    workers: int
    device: torch.device
    launcher: str
    end_step: int
    """Steps of the whole run."""
    tables: Callable[[int], Iterator[pa.Table]]
    """This worker's micro-batches from a step on; `stream.worker_batches` reads them."""
    store: CheckpointStore
    """Where the checkpoints of the run are."""
    publish: Callable[[Path, str, Callable[[], None], bool], "Future[None]"]
    """Publishes this worker's part of a checkpoint: its folder of files, the checkpoint's name, what uploads them, and
    whether it is then validated in the background (worker 0's word counts).

    Starts the upload in the background, at most one at a time, and deletes the folder after it. The answer is done when
    the upload is; Ray ends a worker whose upload has failed, so there it may stay open. Every worker calls it.
    """
    started_at_s: float
    """Unix time of the command, to tell where the start-up time went."""
    ask_cluster: Callable[[], bool] | None = None
    """Whether the cluster is about to take a machine away; all workers ask together."""
    profile: bool = False
    """Whether some of the first steps are measured (training/profile.py)."""
    measure: Callable[[Mapping[str, float]], None] | None = None
    """Takes what this worker measures with every metric line: `step`, `steps` since the last one, `loss`,
    `events_per_s`, `data_wait_fraction`."""

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers."""
        if self.workers > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def start_all_reduce(self, values: Tensor) -> Callable[[], Tensor]:
        """Starts `all_reduce` and does not wait for it; the answer gives the sum, and waits if it must."""
        if self.workers == 1:
            return lambda: values
        values = values.to(self.device)
        work = dist.all_reduce(values, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return values

        return wait
