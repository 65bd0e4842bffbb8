"""A worker's context for tests that need one and start nothing."""

from pathlib import Path

import torch

from genrec.run_dir import RunDir
from genrec.training.context import WorkerContext


def context_of(folder: Path, workers: int = 1) -> WorkerContext:
    return WorkerContext(
        run=RunDir(folder),
        rank=0,
        workers=workers,
        device=torch.device("cpu"),
        launcher="local",
        end_step=100,
        tables=lambda _: iter(()),
        publish=lambda _, __: None,
        started_at_s=0.0,
    )
