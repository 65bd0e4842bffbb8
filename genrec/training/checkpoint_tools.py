"""What can be done with a checkpoint besides resuming: comparing two, and publishing one for recommending.

Both go through the universal form (universal.py), so the checkpoints may be of any number of workers and any engine.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.item_types import item_type_codes
from genrec.data.item_vectors import ItemVectors, vectors_for
from genrec.data.manifest import load_manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError, GenrecError
from genrec.inference.export import INFO_FILE, read_export, write_export
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.run_dir import RunDir, value_differences
from genrec.semantic.ids import SemanticIds
from genrec.semantic.run_map import check_map, semantic_ids_for
from genrec.training.checkpoint import CheckpointInfo, info_in, metric_after
from genrec.training.checkpoint_fetch import fetched
from genrec.training.checkpoint_list import StoredCheckpoint
from genrec.training.engine import TAG
from genrec.training.state import export_info
from genrec.training.universal import UniversalState, fill_module, universal_state
from genrec.training.validations import read_results
from genrec.training.weight_average import fill_with_average


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """How far one weight of two checkpoints is apart; None when it has another number of values."""

    name: str
    largest: float | None
    """The largest difference of two values."""
    relative: float | None
    """Norm of the difference, divided by the norm in the first checkpoint; None when that is 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints side by side. Texts are `name: first -> second`."""

    settings: list[str]
    versions: list[str]
    progress: list[str]
    weights: list[WeightDifference]
    """Weights of both, the largest difference first."""
    only_first: list[str]
    only_second: list[str]


def compare_checkpoints(first: StoredCheckpoint, second: StoredCheckpoint) -> Comparison:
    """What differs between two checkpoints of any topology; one weight of each is in memory at a time.

    Raises RunError when one of them does not count.
    """
    with fetched(*first) as here, fetched(*second) as there:
        return _compare(here, there)


def _compare(first: Path, second: Path) -> Comparison:
    before, after = info_in(first), info_in(second)
    with _universal(first, before) as one, _universal(second, after) as other:
        names = set(one.names()), set(other.names())
        weights = [_difference(name, one, other) for name in sorted(names[0] & names[1])]
    return Comparison(
        settings=value_differences(_settings(before), _settings(after)),
        versions=value_differences(before.versions, after.versions),
        progress=value_differences(_progress(before), _progress(after)),
        weights=sorted(weights, key=lambda w: -float("inf") if w.largest is None else -w.largest),
        only_first=sorted(names[0] - names[1]),
        only_second=sorted(names[1] - names[0]),
    )


def export_checkpoint(
    checkpoint: StoredCheckpoint, run: RunDir, config: ExperimentConfig, folder: Path, *, overwrite: bool = False
) -> None:
    """Publishes a checkpoint of `run` as an export in `folder`, as training does with the best one.

    `config` is the run's; a checkpoint that holds its own uses that. Raises RunError when the checkpoint does not
    count, DataError when its items are not to be had any more or the folder holds something else.
    """
    _check_folder(folder, overwrite=overwrite)
    with fetched(*checkpoint) as files:
        info = info_in(files)
        info.state.metric = metric_after(info, read_results(run.validations_path))
        if info.config is not None:
            config = config_from_dict(info.config, f"the config in {checkpoint}")
        items_path, actions = _items_of(info, run, config)
        item_types = item_type_codes(pq.read_table(items_path))
        ids = _map_of(info, run, config, len(item_types) - 1)
        vectors = vectors_for(config, items_path.parent)
        model = model_of(files, info, config, Catalogue(item_types, len(actions), vectors, ids))
    said = export_info(info.state, config.evaluation.metric, info.content_hash, actions)
    write_export(folder, model.state_dict(), config, items_path, said, ids)


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / INFO_FILE).is_file():
        raise DataError(f"{folder} holds something that is not an export; choose another --output.")
    if not overwrite:
        raise DataError(f"{folder} holds an export already; add --overwrite to replace it, or choose another --output.")


def _items_of(info: CheckpointInfo, run: RunDir, config: ExperimentConfig) -> tuple[Path, list[str]]:
    """The item table that a checkpoint was trained on, and the names of its actions."""
    try:
        manifest = load_manifest(config.data.prepared)
        if manifest.content_hash == info.content_hash:
            return at_hand(config.data.prepared) / ITEMS_FILE, list(manifest.actions)
    except GenrecError:
        pass  # gone; the run's own export has a copy
    try:
        best = read_export(run.export_path).info
        if best["content_hash"] == info.content_hash:
            return run.export_path / ITEMS_FILE, list(best.get("actions", ()))
    except DataError:
        pass  # no validation yet
    raise DataError(
        f"Neither {config.data.prepared} nor {run.export_path} holds the items that the checkpoint was trained on; "
        "prepare the data set again."
    )


def _map_of(info: CheckpointInfo, run: RunDir, config: ExperimentConfig, num_items: int) -> SemanticIds | None:
    """The map that a checkpoint writes codes of; None when it writes none."""
    if not config.writes_codes:
        return None
    try:
        exported = read_export(run.export_path).semantic_ids
        if exported is not None and exported.digest == info.semantic_ids:
            return exported
    except DataError:
        pass  # no validation yet
    ids = semantic_ids_for(config, num_items)
    check_map(info.semantic_ids, ids, "The checkpoint")
    return ids


class Catalogue(NamedTuple):
    """What `build_model` asks of a data set."""

    item_types: npt.NDArray[np.uint8]
    num_actions: int
    item_vectors: ItemVectors | None
    semantic_ids: SemanticIds | None


def model_of(
    files: Path,
    info: CheckpointInfo,
    config: ExperimentConfig,
    catalogue: Catalogue,
) -> SequenceModel:
    """The model with the weights of a checkpoint of any topology, whose files are local, in fp32 on CPU.

    Those of the average, where the checkpoint holds one.
    """
    model = build_model(config, len(catalogue.item_types) - 1, *catalogue)
    with _universal(files, info) as state:
        fill_module(model, state)
    fill_with_average(model, files)
    return model


@contextmanager
def _universal(checkpoint: Path, info: CheckpointInfo) -> Iterator[UniversalState]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # shards are put together on CPU, and nothing is trained
    with tempfile.TemporaryDirectory(prefix="genrec-checkpoint-") as folder:
        yield universal_state(checkpoint, TAG, info.step, info.engine, lambda _: None, Path(folder))


def _difference(name: str, one: UniversalState, other: UniversalState) -> WeightDifference:
    before, after = one.flat(name, "fp32"), other.flat(name, "fp32")
    if before.shape != after.shape:
        return WeightDifference(name, None, None)
    apart, norm = after - before, float(before.norm())
    return WeightDifference(name, float(apart.abs().max()), float(apart.norm()) / norm if norm else None)


def _settings(info: CheckpointInfo) -> dict[str, Any]:
    """All settings where the checkpoint holds them; else what it knows of them."""
    known = {"engine": info.engine, "cluster": {"workers": info.workers}}
    return {**(info.config or known), "prepared set": info.content_hash}


def _progress(info: CheckpointInfo) -> dict[str, Any]:
    state = info.state
    return {
        "step": info.step,
        "epoch": round(state.epochs_done, 6),
        "validation metric": state.metric,
        "best validation metric": state.best_metric,
    }
