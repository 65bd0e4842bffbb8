"""Full-catalogue evaluation of a model on one worker or on many (layer 3; knows neither Ray nor DeepSpeed).

Every item of the catalogue is ranked for every user: nothing is sampled. What the user has seen is taken out of the
ranking when `evaluation.filter_seen` says so, except the target itself, which people do repeat. How ranks are computed
is in ranking.py; more than means, for a finished run, in detail.py.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import Role
from genrec.errors import DataError
from genrec.evaluation.heads import evaluate_heads
from genrec.evaluation.listing import list_items
from genrec.evaluation.metrics import RankSums
from genrec.evaluation.ranking import Limits, Ranked, rank_users
from genrec.evaluation.users import EvaluationBatch, evaluation_batches, in_step
from genrec.evaluation.workers import AllReduce, Workers
from genrec.models.base import SequenceModel


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics over all workers (`hr@10`, ...), one standard error of each, users, and this worker's wall seconds.

    `heads` is what was measured of the model's heads (heads.py).
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    num_users: int
    seconds: float
    heads: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: SequenceModel,
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    *,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: AllReduce | None = None,
    max_users: int | None = None,
) -> EvaluationResult:
    """The model's metrics on the users that `role` holds out, the same on every worker.

    Every worker calls it together, with its `rank` and an `all_reduce` that sums over them. The model stays on its
    device and gets its training mode back. Raises DataError when the role holds nobody out, RunError on NaN scores.
    """
    started = time.perf_counter()
    workers = Workers(rank, world_size, all_reduce)
    sums = RankSums.zeros(max(config.evaluation.ks), next(model.parameters()).device)
    with evaluating(model):
        for _, ranked in ranked_users(model, config, manifest, role, workers, max_users=max_users):
            sums = sums.add(ranked.ranks)
        heads = evaluate_heads(model, config, manifest, role, workers, max_users=max_users)
    return replace(finish(sums, config, manifest, role, all_reduce, started), heads=heads)


def ranked_users(
    model: SequenceModel,
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    workers: Workers,
    *,
    max_users: int | None = None,
    num_listed: int = 0,
) -> Iterator[tuple[EvaluationBatch, Ranked]]:
    """The users of `role` in this worker's share, batch by batch, with ranks and the `num_listed` best items.

    All workers read it to its end together, inside `evaluating(model)`; a batch may be without users.
    """
    device = next(model.parameters()).device
    limits = Limits(config.evaluation.max_scores_bytes // (4 * config.evaluation.users_per_batch), num_listed)
    batches = evaluation_batches(
        config, manifest, role, rank=workers.rank, world_size=workers.count, max_users=max_users
    )
    for users in in_step(batches, workers.all_reduce, device):
        if model.generates:
            yield users, list_items(model, users, max(config.evaluation.ks), device)
        else:
            yield users, rank_users(model, users, workers, limits, device)


def finish(
    sums: RankSums,
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    all_reduce: AllReduce | None,
    started: float,
) -> EvaluationResult:
    """Sums over the workers, then metrics; raises DataError when no worker has had a user."""
    if all_reduce is not None:
        sums = RankSums(all_reduce(sums.histogram))
    if sums.num_users == 0:
        way_out = _way_out(config, manifest, role)
        raise DataError(f"The data set {config.data.prepared} has no user to evaluate for {role}: {way_out}")
    ks = config.evaluation.ks
    seconds = time.perf_counter() - started
    return EvaluationResult(sums.metrics(ks), sums.standard_errors(ks), sums.num_users, seconds)


def _way_out(config: ExperimentConfig, manifest: Manifest, role: Role) -> str:
    split, actions = manifest.split, config.sequence.target_actions
    most = config.evaluation.max_validation_users if role == "validation" else None
    if split.name == "leave-one-out":
        sentence = "leave-one-out needs users with at least 3 events; prepare a log that has some."
    else:
        sentence = (
            f"global-time needs users with an event before and one inside the period (validation from "
            f"{split.validation_from}, test from {split.test_from}); move data.split into the log's time range "
            f"{manifest.time_range[0]} to {manifest.time_range[1]} and prepare again."
        )
    if actions is not None:
        sentence += (
            f" Or no held-out event has an action of sequence.target_actions ({', '.join(actions)}): name more, or "
            "leave the setting out."
        )
    if most is not None:
        sentence += f" Or nobody of so small a sample can be asked: raise evaluation.max_validation_users ({most})."
    return sentence


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside, and each module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what it makes (a gathered ZeRO-3 weight, a cached mask) can never be trained with again.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
