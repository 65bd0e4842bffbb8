"""Full-catalogue evaluation of a model on one worker or on many (layer 3; knows neither Ray nor DeepSpeed).

Every item of the catalogue is ranked for every user: nothing is sampled. What the user has seen is taken out of the
ranking when `evaluation.filter_seen` says so, except the target itself, which people do repeat.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import Role
from genrec.errors import DataError
from genrec.evaluation.metrics import RankSums, ranks_of
from genrec.evaluation.users import EvaluationBatch, evaluation_batches, placeholder_batch
from genrec.models.base import SequenceModel

AllReduce = Callable[[Tensor], Tensor]
"""Sums an int64 tensor over all workers and returns the sum; may work in place."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Metrics over all workers (`hr@10`, ...), one standard error of each, users, and this worker's wall seconds."""

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    num_users: int
    seconds: float


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
    device = next(model.parameters()).device
    sums = RankSums.zeros(max(config.evaluation.ks), device)
    batches = evaluation_batches(config, manifest, role, rank=rank, world_size=world_size, max_users=max_users)
    # Not inference_mode: what it makes (a gathered ZeRO-3 weight, a cached mask) can never be trained with again.
    with _evaluation_mode(model), torch.no_grad():
        for users in _in_step(batches, all_reduce, device):
            sums = sums.add(target_ranks(model, users, device))
    return finish(sums, config, manifest, role, all_reduce, started)


def target_ranks(model: SequenceModel, users: EvaluationBatch, device: torch.device) -> Tensor:
    """The rank of each user's target among all items, [num_users] int64.

    The target stays in the ranking when it is among the seen items, and column 0, padding, never counts.
    """
    num_users = users.targets.shape[0]
    hidden = model.last_hidden(users.batch.to(device))[:num_users]
    scores = model.item_table.scores(hidden)  # [num_users, num_items + 1]
    targets = users.targets.to(device).unsqueeze(1)
    target_scores = scores.gather(1, targets)
    scores[:, 0] = -float("inf")
    scores[users.seen_rows.to(device), users.seen_items.to(device)] = -float("inf")
    scores.scatter_(1, targets, target_scores)
    return ranks_of(scores, targets.squeeze(1))


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
        raise DataError(f"The data set {config.data.prepared} has no user to evaluate for {role}: {_way_out(manifest)}")
    ks = config.evaluation.ks
    seconds = time.perf_counter() - started
    return EvaluationResult(sums.metrics(ks), sums.standard_errors(ks), sums.num_users, seconds)


def _way_out(manifest: Manifest) -> str:
    split = manifest.split
    if split.name == "leave-one-out":
        return "leave-one-out needs users with at least 3 events; prepare a log that has some."
    return (
        f"global-time needs users with an event before and one inside the period (validation from "
        f"{split.validation_from}, test from {split.test_from}); move data.split into the log's time range "
        f"{manifest.time_range[0]} to {manifest.time_range[1]} and prepare again."
    )


def _in_step(
    batches: Iterator[EvaluationBatch], all_reduce: AllReduce | None, device: torch.device
) -> Iterator[EvaluationBatch]:
    """This worker's batches, then placeholders until no worker has any left.

    Under ZeRO-3 a forward pass gathers weights from all workers, so all of them must make the same number of passes,
    however unevenly the users fall. One number summed before each batch costs far less than the pass.
    """
    for batch in batches:
        if all_reduce is not None:
            all_reduce(torch.ones(1, dtype=torch.int64, device=device))
        yield batch
    while all_reduce is not None and int(all_reduce(torch.zeros(1, dtype=torch.int64, device=device))) > 0:
        yield placeholder_batch()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
