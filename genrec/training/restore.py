"""Where a worker begins: at a checkpoint of its run, at the weights of an export, or at nothing.

Rank 0 decides and tells the others, so all begin alike even when their views of a shared disk differ for a moment, and
the digests of a checkpoint are compared once, not by every worker.
"""

import logging
from pathlib import Path

import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.errors import GenrecError, RunError, StorageError
from genrec.semantic.run_map import check_map
from genrec.training import validations
from genrec.training.checkpoint import (
    drop_after,
    info_in,
    prune_checkpoints,
    read_info,
    resume_point,
    same_topology,
)
from genrec.training.checkpoint_fetch import UnusableCheckpointError, by_fetching, fetch, forget
from genrec.training.checkpoint_store import checkpoint_name
from genrec.training.context import WorkerContext
from genrec.training.engine import TAG, Engine
from genrec.training.state import TrainState
from genrec.training.universal import forget_universal, universal_state
from genrec.training.validations import protocol_of

logger = logging.getLogger(__name__)

_NOTHING, _REFUSED, _OUT_OF_REACH = -1, -2, -3


def agreed_checkpoint(config: ExperimentConfig, context: WorkerContext) -> Path | None:
    """A folder with the checkpoint that all workers go on from, or None; all call it alike, before anything is written.

    Rank 0 also deletes what is newer, which does not count. Raises RunError on every worker when rank 0 refuses, and
    StorageError when the storage does.
    """
    store = context.store
    code, refusal = _NOTHING, None
    if context.rank == 0:
        try:
            point = resume_point(store, by_fetching, warn=logger.warning)
            drop_after(store, point)
            code = _NOTHING if point is None else read_info(store, point).step
            validations.drop_after(context.run.validations_path, max(code, 0))
            results = validations.read_results(context.run.validations_path)
            prune_checkpoints(store, config.train.keep_checkpoints, config.train.keep_best, results)
        except (GenrecError, OSError) as error:
            code, refusal = _OUT_OF_REACH if isinstance(error, StorageError) else _REFUSED, error
    # Only rank 0 adds anything but 0.
    told = int(context.all_reduce(torch.tensor([code if context.rank == 0 else 0], dtype=torch.float64))[0])
    if refusal is not None:
        raise refusal
    if told == _OUT_OF_REACH:
        raise StorageError(f"Worker 0 could not read the checkpoints in {store}; its own message says why.")
    if told == _REFUSED:
        resume_point(store)  # the same sentence, whichever worker's is shown
        raise RunError(f"Worker 0 cannot go on from the checkpoints in {store}; its own message says why.")
    if told == _NOTHING:
        return None
    try:
        return fetch(store, checkpoint_name(told))
    except UnusableCheckpointError as error:
        raise RunError(
            f"Worker {context.rank} does not see the checkpoint {store}/{checkpoint_name(told)} that worker 0 sees "
            f"({error.problem}); put runs_dir or train.checkpoint_dir on storage that all workers share."
        ) from error


def restore(
    folder: Path | None, config: ExperimentConfig, engine: Engine, context: WorkerContext, manifest: Manifest
) -> TrainState:
    """The state of a checkpoint, with the engine restored to it; a fresh one without a checkpoint."""
    if folder is None:
        return TrainState()
    info = info_in(folder)
    if info.content_hash != manifest.content_hash:
        raise RunError(
            f"{folder} was trained on another data set than {config.data.prepared} holds now; prepare the old one "
            "again, or start over with --fresh."
        )
    check_map(info.semantic_ids, engine.model.semantic_ids, str(folder))
    if same_topology(info, config, context.workers):
        engine.load(folder)
        context.all_reduce(torch.zeros(1))  # all have read it
    else:
        universal = universal_state(folder, TAG, info.step - info.state.num_left_out, info.engine, logger.warning)
        engine.load_universal(universal)
        context.all_reduce(torch.zeros(1))  # all have read it
        forget_universal(universal)
    forget(context.store)
    if info.config is not None and protocol_of(info.config) != protocol_of(config.model_dump(mode="json")):
        # Numbers of another protocol cannot be compared with those to come.
        info.state.best_metric, info.state.best_step, info.state.validations_without_gain = None, None, 0
    return info.state
