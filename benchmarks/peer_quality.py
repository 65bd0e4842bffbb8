"""Time to quality on Amazon Beauty: the model that both sides train, and how their curves are scored.

One metric code for both: genrec's validations are in its metrics.jsonl, RecTools saves the vectors that it would rank
with, and `score_vectors` ranks with them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.config import load_config
from genrec.evaluation.metrics import metrics_from_ranks, ranks_of
from peer_process import ROOT
from peer_protocol import MIN_LEAVE_ONE_OUT_EVENTS, Ids, PeerModel, read_sequences

BEAUTY_CONFIG = ROOT / "configs" / "sasrec_beauty.yaml"
USERS_PER_BATCH = 512


def beauty_model() -> PeerModel:
    """The model of `configs/sasrec_beauty.yaml`; batch and learning rate are those of the published recipe."""
    config = load_config(BEAUTY_CONFIG)
    model, loss = config.model, config.loss
    if model.name != "sasrec" or loss.name != "sampled-softmax":
        raise ValueError(f"{BEAUTY_CONFIG.name} must be SASRec with sampled softmax to be compared")
    return PeerModel(
        name="sasrec-beauty",
        kind="sasrec",
        loss="sampled-softmax",
        dim=model.dim,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        max_length=config.sequence.max_length,
        num_negatives=loss.num_negatives,
        dropout=model.dropout,
        seed=config.seed,
    )


def curve_points(records: list[dict[str, Any]], evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Validations by training seconds, with the test metric at the best step.

    `elapsed_s` of a run holds its validations, so those that came before are taken off.
    """
    points, validating_s = [], 0.0
    for record in records:
        if record["kind"] != "validation":
            continue
        test = evaluation["test"] if evaluation else None
        is_best = test is not None and test["best_step"] == record["step"]
        points.append(
            {
                "step": record["step"],
                "epoch": record["epoch"],
                "training_s": record["elapsed_s"] - validating_s,
                "validation_ndcg@10": record["metrics"]["ndcg@10"],
                "validation_hr@10": record["metrics"]["hr@10"],
                "test_ndcg@10": test["metrics"]["ndcg@10"] if test and is_best else None,
                "test_hr@10": test["metrics"]["hr@10"] if test and is_best else None,
            }
        )
        validating_s += record["seconds"]
    return points


def score_vectors(path: Path, log: Path) -> dict[str, float]:
    """Validation and test metrics of the vectors that a peer saved, by genrec's metric code, seen items filtered.

    A target that the peer has no vector for counts as ranked last.
    """
    sequences = [items for items in read_sequences(log, "lists") if len(items) >= MIN_LEAVE_ONE_OUT_EVENTS]
    with np.load(path) as arrays:
        columns = {int(item): column for column, item in enumerate(arrays["item_ids"])}
        items = torch.from_numpy(arrays["items"])
        users = {role: torch.from_numpy(arrays[role]) for role in ("validation", "test")}
    metrics = {}
    for role, held_out in (("validation", 2), ("test", 1)):
        parts = [
            _ranks(users[role][start : start + USERS_PER_BATCH], items, sequences[start:], held_out, columns)
            for start in range(0, len(sequences), USERS_PER_BATCH)
        ]
        found = metrics_from_ranks(torch.cat(parts), (10,))
        metrics |= {f"{role}_{name}": found[name] for name in ("ndcg@10", "hr@10")}
    return metrics


def _ranks(
    users: torch.Tensor, items: torch.Tensor, sequences: list[Ids], held_out: int, columns: dict[int, int]
) -> torch.Tensor:
    """Ranks of the targets of the first `len(users)` sequences; the last column stands for items without a vector."""
    scores = torch.cat([users @ items.T, torch.full((len(users), 1), -float("inf"))], dim=1)
    targets = torch.empty(len(users), dtype=torch.int64)
    for row, sequence in enumerate(sequences[: len(users)]):
        target = columns.get(int(sequence[-held_out]), len(items))
        score = scores[row, target].item()
        scores[row, [columns[item] for item in sequence[:-held_out].tolist() if item in columns]] = -float("inf")
        scores[row, target] = score
        targets[row] = target
    return ranks_of(scores, targets)
