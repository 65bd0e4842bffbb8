"""Final metrics of a run: its best model, each role with its popularity baseline and its protocol card."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.data.item_types import read_item_types
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.schema import Role
from genrec.errors import DataError
from genrec.evaluation.detail import evaluate_in_detail
from genrec.evaluation.popularity import evaluate_popularity
from genrec.evaluation.protocol import protocol_card
from genrec.evaluation.sharded_table import share_out
from genrec.evaluation.user_ranks import UserRanks, write_ranks
from genrec.evaluation.workers import Workers
from genrec.inference.export import Export, read_export
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.fused_table import settle
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
    if not set(roles) <= set(config.evaluated_roles):
        raise DataError(
            f"{run.root} is a refit: it was trained on the validation events, so nothing is left to validate it on; "
            "evaluate it on test."
        )
    manifest = load_manifest(config.data.prepared)
    model = _load_model(export, manifest, workers, device or torch.device("cpu"))
    num_parameters = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    del export, weights  # the whole item table, where it is shared out
    evaluation: dict[str, Any] = {}
    ranks: dict[str, UserRanks] = {}
    for role in roles:
        detail = evaluate_in_detail(model, config, manifest, role, workers, step=info["step"])
        evaluation[role], ranks[role] = detail.values, detail.ranks
        if rank == 0:
            evaluation[role]["popularity"] = evaluate_popularity(config, manifest, role).metrics
            evaluation[role]["protocol"] = protocol_card(config, manifest, model.uses_query_time, role, info["step"])
            evaluation[role]["best_step"] = info["step"]
            evaluation[role]["num_parameters"] = num_parameters
            if role == "test" and manifest.best_known:
                evaluation[role]["best_known"] = manifest.best_known
    if rank == 0:
        for name, found in ranks.items():
            write_ranks(run.ranks_path(name), found)
        write_atomically(run.evaluation_path, json.dumps(_earlier(run, info["step"]) | evaluation, indent=1))
    return evaluation


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
    if vectors is None and shared and not any(n.startswith("item_table.") for n in weights if n != TABLE):
        assert table is not None
        # A table of one row, to be replaced.
        model = build_model(config, 0, item_types, len(manifest.actions)).to(device)
        share_out(model, table, workers)
        own = {TABLE: model.item_table.weight.detach()}
        model.load_state_dict({**weights, **own})
        return model
    model = build_model(config, manifest.num_items, item_types, len(manifest.actions), vectors, export.semantic_ids)
    model.load_state_dict(weights)
    if vectors is not None:
        settle(model)
        if shared:
            share_out(model, model.item_table.weight.detach(), workers)
    return model.to(device)


def _earlier(run: RunDir, step: int) -> dict[str, Any]:
    """What evaluation.json already says about the same export, so that measuring one role keeps the other."""
    if not run.evaluation_path.is_file():
        return {}
    found: dict[str, Any] = json.loads(run.evaluation_path.read_text(encoding="utf-8"))
    return {role: values for role, values in found.items() if values.get("best_step") == step}
