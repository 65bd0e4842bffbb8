"""A worker's context for tests that need one and start nothing."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch

from genrec.run_dir import RunDir
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.context import WorkerContext


def publish_at_once(folder: Path, _: str, upload: Callable[[], None]) -> "Future[None]":
    done: Future[None] = Future()
    upload()
    done.set_result(None)
    return done


def context_of(folder: Path, workers: int = 1) -> WorkerContext:
    return WorkerContext(
        run=RunDir(folder),
        rank=0,
        workers=workers,
        device=torch.device("cpu"),
        launcher="local",
        end_step=100,
        tables=lambda _: iter(()),
        store=CheckpointStore(folder / "checkpoints"),
        publish=publish_at_once,
        started_at_s=0.0,
    )
