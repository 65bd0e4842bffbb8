"""Everything that is told about a finished model on the users of a role: see evaluate.py for the means alone."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import Role
from genrec.data.user_hashes import user_hashes
from genrec.evaluation.bootstrap import intervals
from genrec.evaluation.evaluate import evaluating, finish, ranked_users
from genrec.evaluation.exposure import Exposure
from genrec.evaluation.heads import evaluate_heads
from genrec.evaluation.metrics import RankSums
from genrec.evaluation.slices import SliceSums, read_item_facts
from genrec.evaluation.user_ranks import MAX_SAVED_USERS, UserRanks
from genrec.evaluation.workers import Workers
from genrec.models.base import SequenceModel

ROWS_AT_A_TIME = 2**20  # of users' ranks: 32 MiB are exchanged at a time


@dataclass(frozen=True, slots=True)
class Detail:
    """`values` is what evaluation.json says about a role's users; `ranks` are those of all users, on rank 0."""

    values: dict[str, Any]
    ranks: UserRanks


def evaluate_in_detail(
    model: SequenceModel, config: ExperimentConfig, manifest: Manifest, role: Role, workers: Workers, *, step: int
) -> Detail:
    """Metrics with standard errors and intervals, slices, what the lists hold, and ranks; every worker calls it.

    `step` is that of the model's weights. Raises DataError when the role holds nobody out, RunError on NaN scores.
    """
    started = time.perf_counter()
    ks, device = config.evaluation.ks, next(model.parameters()).device
    facts = read_item_facts(config.data.prepared)
    sums = RankSums.zeros(max(ks), device)
    slices, exposure = SliceSums(facts, max(ks)), Exposure(manifest.num_items, ks, device)
    parts = [np.zeros((0, 4), dtype=np.int64)]
    with evaluating(model):
        for users, ranked in ranked_users(model, config, manifest, role, workers, num_listed=max(ks)):
            sums = sums.add(ranked.ranks)
            exposure.add(ranked.items)
            ranks, targets, lengths = ranked.ranks.cpu(), users.targets, users.history_lengths
            slices.add(ranks.numpy(), targets.numpy(), lengths.numpy())
            parts.append(torch.stack([users.users, ranks, targets, lengths], dim=1).numpy())
        heads = evaluate_heads(model, config, manifest, role, workers)
    sums = RankSums(workers.sum(sums.histogram))
    result = finish(sums, config, manifest, role, None, started)
    values = {
        "metrics": result.metrics,
        "standard_errors": result.standard_errors,
        "intervals": intervals(sums.counts, ks),
        "num_users": result.num_users,
        "seconds": result.seconds,
        "beyond_accuracy": exposure.results(facts.train_counts, workers),
        "slices": slices.results(ks, workers, device),
    }
    if heads:
        values["heads"] = heads
    return Detail(values, gather_ranks(np.concatenate(parts), step, workers, device))


def gather_ranks(
    columns: npt.NDArray[np.int64], step: int, workers: Workers, device: torch.device, limit: int = MAX_SAVED_USERS
) -> UserRanks:
    """What all workers have, on rank 0; the other workers get no users. Every worker calls it together.

    `columns` [num_users, 4] are this worker's. Of more than about `limit` users a sample of them is kept.
    """
    num_users = int(workers.sum(torch.tensor(len(columns), device=device)))
    if num_users > limit:
        columns = columns[user_hashes(columns[:, 0]) < np.uint64(2**64 * limit // num_users)]
    sizes = workers.gather(torch.tensor(len(columns), device=device)).tolist()
    parts = [np.zeros((0, 4), dtype=np.int64)]
    for source, size in enumerate(sizes):
        for first in range(0, size, ROWS_AT_A_TIME):
            part = torch.zeros(min(ROWS_AT_A_TIME, size - first), 4, dtype=torch.int64, device=device)
            if source == workers.rank:
                part.copy_(torch.from_numpy(columns[first : first + len(part)]))
            part = workers.sum(part)
            if workers.rank == 0:
                parts.append(part.cpu().numpy())
    everyone = np.concatenate(parts)
    return UserRanks(everyone[np.argsort(everyone[:, 0], kind="stable")], step, num_users)
