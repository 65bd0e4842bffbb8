"""What a launcher gives a worker: who it is, where its data comes from, and where its checkpoints go."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from genrec.run_dir import RunDir


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
    publish: Callable[[Path, str, bool], None]
    """Moves this worker's checkpoint files from a folder of its own to the run, and says whether it is then validated
    in the background; every worker calls it, and worker 0's word counts."""
    started_at_s: float
    """Unix time of the command, to tell where the start-up time went."""
    ask_cluster: Callable[[], bool] | None = None
    """Whether the cluster is about to take a machine away; all workers ask together."""

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
