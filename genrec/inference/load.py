"""From an export, or two, to the model that answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from genrec.config import ExperimentConfig
from genrec.data.item_types import item_type_codes
from genrec.errors import ConfigError, DataError
from genrec.inference.export import Export, find_export, read_export
from genrec.inference.extended import extended
from genrec.inference.serving import AS_TRAINED, ServedModel
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel
from genrec.models.fused_table import settle
from genrec.models.reranked import Reranked


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers, its items, and what is known about it.

    `config` and `info` are the export's; where another model re-ranks, `config` says what both read, and `ranker` is
    that one. `num_joined` of the items have joined since the training, with codes of an extended map.
    """

    model: SequenceModel
    config: ExperimentConfig
    items: pa.Table
    info: dict[str, Any]
    num_joined: int = 0
    ranker: "LoadedModel | None" = None

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the log's actions 1, 2, ..."""
        return tuple(self.info.get("actions", ()))


def load_model(path: str | Path, served: ServedModel = AS_TRAINED) -> LoadedModel:
    """The best model of a run directory or of an export folder, as `served` asks for it, in evaluation mode.

    Raises DataError when there is none or it is damaged, ConfigError when it cannot do what is asked.
    """
    folder = find_export(path)
    export = read_export(folder)
    num_trained_items = export.items.num_rows
    if served.map is not None:
        export = extended(export, served.map, str(path))
    num_joined = export.items.num_rows - num_trained_items
    if served.rerank is None:
        return _built(export, folder, num_joined)
    ranker_folder = find_export(served.rerank)
    ranker_export = read_export(ranker_folder)
    _check_pair(export, ranker_export, str(path), str(served.rerank))
    cold_items = _cold_items(ranker_export, str(served.rerank)) if served.cold_items else []
    num_candidates = served.candidates or export.config.evaluation.beam_width
    own_window, ranker_window = (each.config.sequence.max_length for each in (export, ranker_export))
    proposer = _built(export._replace(config=_wider(export.config, num_candidates)), folder)
    ranker = _built(ranker_export, ranker_folder)
    assert isinstance(proposer.model, CodeModel)
    model = Reranked(
        proposer.model,
        ranker.model,
        num_candidates,
        (own_window, ranker_window),
        torch.tensor(cold_items, dtype=torch.int64),
    )
    config = _of_both(proposer.config, ranker.config)
    return LoadedModel(model.eval(), config, export.items, export.info, num_joined, ranker)


def _built(export: Export, folder: Path, num_joined: int = 0) -> LoadedModel:
    types = item_type_codes(export.items)
    num_actions = len(export.info.get("actions", ()))
    model = build_model(export.config, export.items.num_rows, types, num_actions, export.vectors, export.semantic_ids)
    try:
        model.load_state_dict(export.state_dict)
    except RuntimeError as error:
        raise DataError(
            f"The weights in {folder} are not of the model in its config ({str(error).splitlines()[0]}); "
            "train again, or copy the whole folder."
        ) from error
    if any(bool(weight.isnan().any()) for weight in export.state_dict.values() if weight.is_floating_point()):
        raise DataError(
            f"The weights in {folder} hold NaN: training has diverged; train again with a lower optimizer.lr."
        )
    settle(model)
    return LoadedModel(model.eval(), export.config, export.items, export.info, num_joined)


def _check_pair(export: Export, ranker: Export, path: str, ranker_path: str) -> None:
    """Raises ConfigError unless the ranker scores the items that the other model writes."""
    if not export.config.writes_codes:
        raise ConfigError(
            f"{path} ({export.config.model.name}) scores every item already, so there is nothing to re-rank; leave "
            "--rerank out, or name a run whose model writes codes."
        )
    if ranker.config.writes_codes:
        raise ConfigError(
            f"{ranker_path} ({ranker.config.model.name}) writes codes and has no scores of items to re-rank by; name "
            "a run of another model (sasrec, hstu, decoder) in --rerank."
        )
    own, other = (table.sort_by("index")["item"].combine_chunks() for table in (export.items, ranker.items))
    if not own.equals(other):
        raise ConfigError(
            f"{ranker_path} knows other items than {path} ({len(other):,} and {len(own):,} items, or in another "
            f"order), so its scores would be of other items; re-rank by a model that was trained on the set of {path}."
        )
    if ranker.config.inputs.actions and ranker.info.get("actions", ()) != export.info.get("actions", ()):
        raise ConfigError(
            f"{ranker_path} reads actions, and its log had others than that of {path}; re-rank by a model that was "
            f"trained on the set of {path}."
        )


def _cold_items(ranker: Export, path: str) -> list[int]:
    """Indices of the items that the ranker has not been trained on and knows by their vectors."""
    if ranker.vectors is None:
        raise ConfigError(
            f"{path} knows items by what it has seen of them, so it cannot score cold ones; leave --cold-items out, "
            "or re-rank by a model with inputs.item_vectors."
        )
    vectors, is_trained = ranker.vectors
    cold = np.flatnonzero(~is_trained)
    return [int(item) for item in cold if item > 0 and vectors[item].any()]


def _wider(config: ExperimentConfig, num_candidates: int) -> ExperimentConfig:
    """The config of a model that looks for that many items."""
    width = max(config.evaluation.beam_width, num_candidates)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"beam_width": width})})


def _of_both(config: ExperimentConfig, ranker: ExperimentConfig) -> ExperimentConfig:
    """The config with what the ranker reads too: longer windows, actions; and whether either is a refit."""
    sequence = {"max_length": max(config.sequence.max_length, ranker.sequence.max_length)}
    train_on = {"train_on": "train+validation"} if config.refits or ranker.refits else {}
    inputs = {"actions": config.inputs.actions or ranker.inputs.actions}
    return config.model_copy(
        update={
            "sequence": config.sequence.model_copy(update=sequence | train_on),
            "inputs": config.inputs.model_copy(update=inputs),
        }
    )
