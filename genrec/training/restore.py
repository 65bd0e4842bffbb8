"""Where a worker begins: at a checkpoint of its run, at the weights of an export, or at nothing.

Rank 0 decides and tells the others, so all begin alike even when their views of a shared disk differ for a moment, and
the digests of a checkpoint are compared once, not by every worker.
"""

import logging
from pathlib import Path

import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.errors import GenrecError, RunError
from genrec.training import validations
from genrec.training.checkpoint import (
    checkpoint_name,
    drop_after,
    find_problem,
    prune_checkpoints,
    read_info,
    resume_point,
    same_topology,
)
from genrec.training.context import WorkerContext
from genrec.training.engine import TAG, Engine
from genrec.training.state import TrainState
from genrec.training.universal import forget_universal, universal_state
from genrec.training.validations import protocol_of

logger = logging.getLogger(__name__)

_NOTHING, _REFUSED = -1, -2


def agreed_checkpoint(config: ExperimentConfig, context: WorkerContext) -> Path | None:
    """The checkpoint that all workers go on from, or None; every worker calls it alike, before anything is written.

    Rank 0 also deletes what is newer, which does not count. Raises RunError on every worker when rank 0 refuses.
    """
    folder = context.run.checkpoints_path
    code, refusal = _NOTHING, None
    if context.rank == 0:
        try:
            point = resume_point(folder, warn=logger.warning)
            drop_after(folder, point)
            validations.drop_after(context.run.validations_path, 0 if point is None else read_info(point).step)
            prune_checkpoints(folder, config.train.keep_checkpoints, config.train.keep_best)
            code = _NOTHING if point is None else read_info(point).step
        except (GenrecError, OSError) as error:
            code, refusal = _REFUSED, error
    # Only rank 0 adds anything but 0.
    told = int(context.all_reduce(torch.tensor([code if context.rank == 0 else 0], dtype=torch.float64))[0])
    if refusal is not None:
        raise refusal
    if told == _REFUSED:
        resume_point(folder)  # the same sentence, whichever worker's is shown
        raise RunError(f"Worker 0 cannot go on from the checkpoints in {folder}; its own message says why.")
    if told == _NOTHING:
        return None
    chosen = folder / checkpoint_name(told)
    problem = find_problem(chosen, digests=False)
    if problem is not None:
        raise RunError(
            f"Worker {context.rank} does not see the checkpoint {chosen} that worker 0 sees ({problem}); put runs_dir "
            "on storage that all workers share."
        )
    return chosen


def restore(
    folder: Path | None, config: ExperimentConfig, engine: Engine, context: WorkerContext, manifest: Manifest
) -> TrainState:
    """The state of a checkpoint, with the engine restored to it; a fresh one without a checkpoint."""
    if folder is None:
        return TrainState()
    info = read_info(folder)
    if info.content_hash != manifest.content_hash:
        raise RunError(
            f"{folder} was trained on another data set than {config.data.prepared} holds now; prepare the old one "
            "again, or start over with --fresh."
        )
    if same_topology(info, config):
        engine.load(folder)
    else:
        universal = universal_state(folder, TAG, info.step, info.engine, logger.warning)
        engine.load_universal(universal)
        context.all_reduce(torch.zeros(1))  # all have read it
        forget_universal(universal)
    if info.config is not None and protocol_of(info.config) != protocol_of(config.model_dump(mode="json")):
        # Numbers of another protocol cannot be compared with those to come.
        info.state.best_metric, info.state.best_step, info.state.validations_without_gain = None, None, 0
    return info.state
