"""Final metrics of a run: its best model, each role with its popularity baseline and its protocol card."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genrec.data.item_types import read_item_types
from genrec.data.manifest import load_manifest
from genrec.data.schema import Role
from genrec.evaluation.evaluate import evaluate
from genrec.evaluation.popularity import evaluate_popularity
from genrec.evaluation.protocol import protocol_card
from genrec.inference.export import read_export
from genrec.models.build import build_model
from genrec.run_dir import RunDir, write_atomically


def evaluate_run(
    run: RunDir,
    roles: Sequence[Role],
    *,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Metrics of the run's export by role; every worker calls it, rank 0 writes evaluation.json.

    Raises DataError when the run has no export yet, or its prepared data set is gone.
    """
    config, weights, _, info = read_export(run.export_path)
    manifest = load_manifest(config.data.prepared)
    device = device or torch.device("cpu")
    model = build_model(config, manifest.num_items, read_item_types(config.data.prepared)).to(device)
    model.load_state_dict(weights)
    evaluation: dict[str, Any] = {}
    for role in roles:
        result = evaluate(model, config, manifest, role, rank=rank, world_size=world_size, all_reduce=all_reduce)
        evaluation[role] = {
            "metrics": result.metrics,
            "standard_errors": result.standard_errors,
            "num_users": result.num_users,
            "seconds": result.seconds,
        }
        if rank == 0:
            evaluation[role]["popularity"] = evaluate_popularity(config, manifest, role).metrics
            evaluation[role]["protocol"] = protocol_card(config, manifest, model.uses_query_time, role, info["step"])
            evaluation[role]["best_step"] = info["step"]
            if role == "test" and manifest.best_known:
                evaluation[role]["best_known"] = manifest.best_known
    if rank == 0:
        write_atomically(run.evaluation_path, json.dumps(_earlier(run, info["step"]) | evaluation, indent=1))
    return evaluation


def _earlier(run: RunDir, step: int) -> dict[str, Any]:
    """What evaluation.json already says about the same export, so that measuring one role keeps the other."""
    if not run.evaluation_path.is_file():
        return {}
    found: dict[str, Any] = json.loads(run.evaluation_path.read_text(encoding="utf-8"))
    return {role: values for role, values in found.items() if values.get("best_step") == step}
