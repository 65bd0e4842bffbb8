"""The popularity baseline: every user is recommended the items with most training events, under the same protocol."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE, Role
from genrec.data.stored_set import at_hand
from genrec.errors import DataError
from genrec.evaluation.evaluate import EvaluationResult, finish
from genrec.evaluation.metrics import RankSums
from genrec.evaluation.users import EvaluationBatch, evaluation_batches
from genrec.evaluation.workers import AllReduce


def evaluate_popularity(
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    *,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: AllReduce | None = None,
    max_users: int | None = None,
    device: torch.device | str = "cpu",
) -> EvaluationResult:
    """Metrics of scoring each item by its events in training; users, filter, ties and candidates as in `evaluate`.

    `device` is where `all_reduce` wants its tensor. Raises DataError when the role holds nobody out.
    """
    started = time.perf_counter()
    counts = train_counts(config.data.prepared, manifest.num_items)
    ascending = np.sort(counts[1:])
    sums = RankSums.zeros(max(config.evaluation.ks))
    for users in evaluation_batches(config, manifest, role, rank=rank, world_size=world_size, max_users=max_users):
        sums = sums.add(torch.from_numpy(popularity_ranks(users, counts, ascending)))
    return finish(RankSums(sums.histogram.to(device)), config, manifest, role, all_reduce, started)


def train_counts(prepared: str | Path, num_items: int) -> npt.NDArray[np.int64]:
    """Training events of every item by item index, [num_items + 1]; index 0, padding, has none."""
    path = at_hand(prepared) / ITEMS_FILE
    try:
        table = pq.read_table(path, columns=["index", "train_count"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    counts = np.zeros(num_items + 1, dtype=np.int64)
    counts[table["index"].to_numpy()] = table["train_count"].to_numpy()
    return counts


def popularity_ranks(
    users: EvaluationBatch, counts: npt.NDArray[np.int64], ascending: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rank of each target by count, [num_users]: items at least as popular, less the seen ones among them.

    `counts` [num_items + 1] are by item index, `ascending` [num_items] are the same numbers in rising order.
    """
    targets = users.targets.numpy()
    target_counts = counts[targets]
    unfiltered = len(ascending) - np.searchsorted(ascending, target_counts, side="left")
    pairs = np.unique(users.seen_rows.numpy() * len(counts) + users.seen_items.numpy())
    rows, items = np.divmod(pairs, len(counts))
    ahead = (counts[items] >= target_counts[rows]) & (items != targets[rows])
    ranks: npt.NDArray[np.int64] = unfiltered - np.bincount(rows[ahead], minlength=len(targets))
    return ranks
