"""The task's half of background validations: one checkpoint is read, evaluated, and exported when it is the best.

Whatever happens leaves a result in validations/ (validations.py): metrics, or the problem that stood in their way. An
attempt whose process is killed leaves none; whoever started it starts another, and the third is the last.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from genrec.config import DeepSpeedConfig, ExperimentConfig, config_from_dict
from genrec.data.item_types import read_item_types
from genrec.data.item_vectors import vectors_for
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import RunError
from genrec.evaluation.evaluate import evaluate
from genrec.inference.export import write_export
from genrec.models.base import SequenceModel
from genrec.run_dir import RunDir, load_saved_config
from genrec.semantic.run_map import check_map, semantic_ids_for
from genrec.training.checkpoint import CheckpointInfo, info_in
from genrec.training.checkpoint_fetch import fetched
from genrec.training.checkpoint_list import StoredCheckpoint
from genrec.training.checkpoint_tools import Catalogue, model_of
from genrec.training.state import export_info
from genrec.training.validation_books import write_failure
from genrec.training.validations import (
    Validated,
    best_of,
    count_try,
    protocol_of,
    read_result,
    read_results,
    result_path,
    write_result,
)

logger = logging.getLogger(__name__)

MAX_TRIES = 3
EXIT_CODE = 75
"""EX_TEMPFAIL: of a process that ends itself because its time is up."""


def validate_checkpoint(checkpoint: StoredCheckpoint, run: RunDir, device: torch.device, timeout_s: float) -> Validated:
    """The result of the validation of a checkpoint of `run`, which is on disk when this returns.

    It ends this process when it takes longer than `timeout_s`; the result then says so. One that is there already is
    returned as it is.
    """
    step = int(checkpoint.name.removeprefix("step_"))
    known = read_result(result_path(run.validations_path, step))
    if known is not None:
        return known

    def give_up() -> None:
        write_failure(run, checkpoint, f"it took longer than evaluation.validation_timeout_s ({timeout_s:g} s)")
        os._exit(EXIT_CODE)

    if count_try(run.validations_path, step) > MAX_TRIES:
        return write_failure(run, checkpoint, f"its process was killed {MAX_TRIES} times; it may need more memory")
    try:
        with _at_most(timeout_s, give_up):
            measured = _measure(checkpoint, run, device)
        return _publish(measured, run)
    except Exception as error:  # training goes on without it, and the run says why it has no metrics here
        logger.exception("%s could not be validated", checkpoint)
        return write_failure(run, checkpoint, f"{type(error).__name__}: {error}")


class _Measured(NamedTuple):
    """A checkpoint's model and what was measured of it; `info.state` has the metric."""

    model: SequenceModel
    config: ExperimentConfig
    manifest: Manifest
    info: CheckpointInfo
    result: Validated


def _measure(checkpoint: StoredCheckpoint, run: RunDir, device: torch.device) -> _Measured:
    started_at = time.perf_counter()
    with fetched(*checkpoint) as files:
        info = info_in(files)
        if info.config is None:
            raise RunError(f"{checkpoint} does not say its config, because an older genrec wrote it; train on from it.")
        # How it is evaluated may have been changed since; only what is measured alike can be compared.
        evaluation = load_saved_config(run.config_path).evaluation
        saved = config_from_dict(info.config, f"the config in {checkpoint}")
        config = saved.model_copy(update={"evaluation": evaluation})
        manifest = load_manifest(config.data.prepared)
        if manifest.content_hash != info.content_hash:
            raise RunError(f"{config.data.prepared} holds another data set than {checkpoint} was trained on.")
        prepared = config.data.prepared
        ids = semantic_ids_for(config, manifest.num_items)
        check_map(info.semantic_ids, ids, str(checkpoint))
        catalogue = Catalogue(read_item_types(prepared), len(manifest.actions), vectors_for(config, prepared), ids)
        model = model_of(files, info, config, catalogue)
    model = _as_trained(model, config).to(device)
    measured = evaluate(model, config, manifest, "validation", max_users=config.evaluation.max_validation_users)
    metric = measured.metrics[config.evaluation.metric]
    result = Validated(
        step=info.step,
        epoch=info.state.epochs_done,
        elapsed_s=info.state.elapsed_s,
        saved_s=info.time_s or time.time(),
        done_s=time.time(),
        protocol=protocol_of(config.model_dump(mode="json")),
        metric=metric,
        metrics=measured.metrics,
        heads=measured.heads,
        num_users=measured.num_users,
        seconds=time.perf_counter() - started_at,
    )
    return _Measured(model, config, manifest, replace(info, state=replace(info.state, metric=metric)), result)


def _publish(measured: _Measured, run: RunDir) -> Validated:
    """Exports the model if it is the best of those that have been validated, then writes the result."""
    model, config, manifest, info, result = measured
    with _alone(run.validations_path / "export.lock"):
        others = read_results(run.validations_path, known=[result.step]).values()
        before = info.state if protocol_of(info.config) == result.protocol else None
        if best_of([*others, result], result.protocol, before)[1] == result.step:
            weights = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
            said = export_info(info.state, config.evaluation.metric, manifest.content_hash, manifest.actions)
            items_path = at_hand(config.data.prepared) / ITEMS_FILE
            write_export(run.export_path, weights, config, items_path, said, model.semantic_ids)
        write_result(run.validations_path, result)  # after the export: a kill between the two validates once more
    return result


def _as_trained(model: SequenceModel, config: ExperimentConfig) -> SequenceModel:
    """The weights as the workers would validate and export them: in bf16 where DeepSpeed trains with that."""
    engine = config.engine
    return model.bfloat16() if isinstance(engine, DeepSpeedConfig) and engine.precision == "bf16" else model


@contextmanager
def _at_most(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Calls `give_up`, which ends the process, from another thread when the block takes longer."""
    decided = threading.Lock()

    def late() -> None:
        if decided.acquire(blocking=False):
            give_up()

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        decided.acquire()  # when time is up, this waits for the end of the process
        timer.cancel()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: a killed run's task may still be at work. The lock ends with its holder."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
