"""Final metrics of a run: its best model, each role with its popularity baseline and its protocol card."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.item_types import read_item_types
from genrec.data.item_vectors import ItemVectors
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.schema import Role
from genrec.errors import DataError
from genrec.evaluation.detail import evaluate_in_detail
from genrec.evaluation.popularity import evaluate_popularity
from genrec.evaluation.protocol import ProtocolCard, protocol_card
from genrec.evaluation.sharded_table import share_out
from genrec.evaluation.user_ranks import UserRanks, write_ranks
from genrec.evaluation.workers import ALONE, Workers
from genrec.inference.export import Export, read_export
from genrec.inference.load import LoadedModel, load_model
from genrec.inference.recommender import ids_by_index
from genrec.inference.same_items import check_same_items
from genrec.inference.serving import ServedModel
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.fused_table import settle, settled_rows
from genrec.models.reranked import Reranked
from genrec.run_dir import RunDir, write_atomically

TABLE = "item_table.weight"


def evaluate_run(
    run: RunDir,
    roles: Sequence[Role],
    *,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Metrics of the run's export by role; every worker calls it, rank 0 writes evaluation.json and the users' ranks.

    Raises DataError when the run has no export yet, or its prepared data set is gone, or a role is
    asked for that the run was trained on.
    """
    workers = Workers(rank, world_size, all_reduce)
    export = read_export(run.export_path)
    config, weights, info = export.config, export.state_dict, export.info
    _check_roles(config, roles, str(run.root))
    manifest = load_manifest(config.data.prepared)
    _check_items(export.items, info, config, manifest, str(run.root))
    model = _load_model(export, manifest, workers, device or torch.device("cpu"))
    num_parameters = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    del export, weights  # the whole item table, where it is shared out
    evaluation: dict[str, Any] = {}
    ranks: dict[str, UserRanks] = {}
    for role in roles:
        detail = evaluate_in_detail(model, config, manifest, role, workers, step=info["step"])
        evaluation[role], ranks[role] = detail.values, detail.ranks
        if rank == 0:
            card = protocol_card(config, manifest, model.uses_query_time, role, info["step"])
            evaluation[role] |= _told(config, manifest, role, card, info["step"], num_parameters)
    if rank == 0:
        for name, found in ranks.items():
            evaluation[name]["ranks_sha256"] = write_ranks(run.ranks_path(name), found)
        write_atomically(run.evaluation_path, json.dumps(_earlier(run, info["step"]) | evaluation, indent=1))
    return evaluation


def evaluate_served(run: RunDir, roles: Sequence[Role], served: ServedModel) -> dict[str, Any]:
    """Metrics by role of what `genrec recommend` answers when it is told the same; written to evaluation-served.json.

    The users' ranks go to files beside it, as those of `evaluate_run` do, so that `genrec compare` can read both; by
    their digests it tells files of one call from those of two. Other options replace them. This process alone. Raises
    as `evaluate_run` and `load_model` do, and DataError when the model that re-ranks was trained on another prepared
    set, whose training events may be what is asked about here.
    """
    loaded = load_model(run.root, served)
    config, step = loaded.config, loaded.info["step"]
    if loaded.ranker is not None:
        _check_roles(loaded.ranker.config, roles, str(served.rerank))
        if loaded.ranker.info.get("content_hash") != loaded.info.get("content_hash"):
            raise DataError(
                f"{served.rerank} was trained on another prepared set than {run.root}, or on another split of it, so "
                "it may have seen what it would be asked about; train both on one set."
            )
    _check_roles(config, roles, str(run.root))
    manifest = load_manifest(config.data.prepared)
    _check_items(loaded.items, loaded.info, config, manifest, str(run.root))
    num_parameters = sum(weight.numel() for weight in loaded.model.parameters())
    evaluation: dict[str, Any] = {}
    for role in roles:
        detail = evaluate_in_detail(loaded.model, config, manifest, role, ALONE, step=step)
        card = protocol_card(config, manifest, loaded.model.uses_query_time, role, step)
        card |= _served_lines(card, loaded, served)
        digest = {"ranks_sha256": write_ranks(run.ranks_path(role, served=True), detail.ranks)}
        evaluation[role] = detail.values | _told(config, manifest, role, card, step, num_parameters) | digest
    write_atomically(run.served_evaluation_path, json.dumps(evaluation, indent=1))
    return evaluation


def _check_roles(config: ExperimentConfig, roles: Sequence[Role], path: str) -> None:
    """Raises DataError when a model was trained on what a role asks about."""
    if not set(roles) <= set(config.evaluated_roles):
        raise DataError(
            f"{path} is a refit: it was trained on the validation events, so nothing is left to validate it on; "
            "evaluate it on test."
        )


def _check_items(
    items: pa.Table, info: dict[str, Any], config: ExperimentConfig, manifest: Manifest, path: str
) -> None:
    """Raises DataError when the prepared set is another one, or has got items since the training."""
    if not check_same_items(ids_by_index(items), info.get("actions", ()), config, manifest):
        return
    way_out = "evaluate it with --map MAP, once that has codes for them" if config.writes_codes else "train it again"
    raise DataError(
        f"{path} was trained on {items.num_rows:,} items, and {config.data.prepared} has {manifest.num_items:,} by "
        f"now; {way_out}, or restore the set."
    )


def _told(
    config: ExperimentConfig, manifest: Manifest, role: Role, card: ProtocolCard, step: int, num_parameters: int
) -> dict[str, Any]:
    """What evaluation.json says beside the measurements of a role."""
    known = {"best_known": manifest.best_known} if role == "test" and manifest.best_known else {}
    return {
        "popularity": evaluate_popularity(config, manifest, role).metrics,
        "protocol": card,
        "best_step": step,
        "num_parameters": num_parameters,
    } | known


def _served_lines(card: ProtocolCard, loaded: LoadedModel, served: ServedModel) -> ProtocolCard:
    """The lines of the card that say who answers, where that is not the run's own model alone."""
    joined = f"{loaded.num_joined} items have joined since the training, with codes of the map {served.map}"
    told = [joined] if loaded.num_joined else []
    if loaded.ranker is None:
        return {"answered_by": "; ".join(told)} if told else {}
    ranker, model = loaded.ranker, loaded.model
    assert isinstance(model, Reranked)
    cold = f" and {len(model.cold_items)} cold items" if served.cold_items else ""
    told.append(
        f"the {model.num_candidates} best of it{cold} in the order of the scores of {ranker.config.name} "
        f"({ranker.config.model.name}, step {ranker.info['step']})"
    )
    reads = ", ".join((*ranker.config.inputs.items, *ranker.config.inputs.names))
    return {"answered_by": "; ".join(told), "inputs": f"{card['inputs']}; re-ranking: {reads}"}


def _load_model(export: Export, manifest: Manifest, workers: Workers, device: torch.device) -> SequenceModel:
    """The exported model; of a large item table each worker takes its rows only (`evaluation.shard_table_bytes`)."""
    config, weights, vectors = export.config, export.state_dict, export.vectors
    item_types = read_item_types(config.data.prepared)
    table = weights.get(TABLE)
    shared = (
        table is not None
        and workers.count > 1
        and table.numel() * table.element_size() >= config.evaluation.shard_table_bytes
        and table.shape[0] >= workers.count
        and not config.writes_codes
    )
    if shared and table is not None:
        # A table of one row, to be replaced.
        first_row = None if vectors is None else ItemVectors(vectors.vectors[:1], vectors.is_trained[:1])
        model = build_model(config, 0, item_types, len(manifest.actions), first_row)
        model.load_state_dict({**weights, TABLE: table[:1]})
        share_out(model, _rows_of(model, table, export), manifest.num_items, workers)
        return model.to(device)
    model = build_model(config, manifest.num_items, item_types, len(manifest.actions), vectors, export.semantic_ids)
    model.load_state_dict(weights)
    if vectors is not None:
        settle(model)
    return model.to(device)


def _rows_of(model: SequenceModel, table: Tensor, export: Export) -> Callable[[range], Tensor]:
    """What gives some rows of the exported item table as evaluation sees them."""
    vectors, config = export.vectors, export.config.inputs.item_vectors
    if vectors is None or config is None:
        # A view would keep the whole table, or the file that it is read from.
        return lambda part: table[part.start : part.stop].clone()
    return lambda part: settled_rows(model, table, vectors, config, part)


def _earlier(run: RunDir, step: int) -> dict[str, Any]:
    """What evaluation.json already says about the same export, so that measuring one role keeps the other.

    Nothing where the file is damaged: it is about to be replaced.
    """
    if not run.evaluation_path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(run.evaluation_path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return {role: values for role, values in found.items() if values.get("best_step") == step}
