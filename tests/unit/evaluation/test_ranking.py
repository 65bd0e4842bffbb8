"""Ranks and lists by chunks and by shards of the catalogue, against the whole score matrix."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from together import together
from torch import Tensor
from whole_number_model import WholeNumberModel

from genrec.data.batch import batch_from_arrays
from genrec.errors import RunError
from genrec.evaluation.ranking import Limits, Ranked, chunk_width, rank_users
from genrec.evaluation.sharded_table import share_out
from genrec.evaluation.users import EvaluationBatch, placeholder_batch
from genrec.evaluation.workers import ALONE, Workers
from genrec.models.base import SequenceModel

NUM_ITEMS = 1_500
NUM_LISTED = 7
CPU = torch.device("cpu")


def some_users(num_users: int, seed: int = 0, num_items: int = NUM_ITEMS) -> EvaluationBatch:
    """Users with histories of 1 to 9 events; every third target has been seen, most history is filtered."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, num_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, num_items + 1, offsets[-1])
    targets = rng.integers(1, num_items + 1, num_users)
    targets[::3] = items[offsets[:-1][::3]]
    return EvaluationBatch(
        batch=batch_from_arrays(items, offsets),
        users=torch.arange(num_users),
        targets=torch.from_numpy(targets),
        history_lengths=torch.from_numpy(lengths),
        seen_rows=torch.from_numpy(np.repeat(np.arange(num_users), lengths)),
        seen_items=torch.from_numpy(items),
    )


def by_definition(model: SequenceModel, users: EvaluationBatch, num_listed: int) -> tuple[list[int], list[list[int]]]:
    """Ranks, and the best items by falling score and rising index, out of the whole matrix in plain Python."""
    scores = model.item_table.scores(model.last_hidden(users.batch)).tolist()
    ranks, lists = [], []
    for row, target in enumerate(users.targets.tolist()):
        seen = set(users.seen_items[users.seen_rows == row].tolist()) - {target}
        candidates = [item for item in range(1, len(scores[row])) if item not in seen]
        ranks.append(sum(scores[row][item] >= scores[row][target] for item in candidates))
        best = sorted(candidates, key=lambda item: (-scores[row][item], item))[:num_listed]
        lists.append(best + [0] * (num_listed - len(best)))
    return ranks, lists


def ranked(model: SequenceModel, users: EvaluationBatch, max_columns: int, num_listed: int = NUM_LISTED) -> Ranked:
    with torch.no_grad():
        return rank_users(model, users, ALONE, Limits(max_columns, num_listed), CPU)


@pytest.mark.parametrize("max_columns", [10**6, 1_000, 128, 1])
def test_chunks_give_the_ranks_and_lists_of_the_whole_matrix(max_columns: int) -> None:
    """Whole numbers: many ties, none of them rounded. A chunk is never narrower than the users and one block."""
    model, users = WholeNumberModel(NUM_ITEMS), some_users(60)
    found = ranked(model, users, max_columns)
    assert (found.ranks.tolist(), found.items.tolist()) == by_definition(model, users, NUM_LISTED)


def test_fewer_candidates_than_places_leave_places_empty() -> None:
    model, users = WholeNumberModel(6), some_users(40, num_items=6)
    found = ranked(model, users, 10**6)
    assert (found.ranks.tolist(), found.items.tolist()) == by_definition(model, users, NUM_LISTED)
    assert bool((found.items == 0).any(dim=1).all())


class RandomModel(SequenceModel):
    """Real-valued hidden states and items: the sum of the item vectors of the history."""

    def encode(self, batch) -> Tensor:  # type: ignore[no-untyped-def]
        vectors = self.item_table.embed(batch.items)
        return torch.cat([part.cumsum(0) for part in vectors.split(batch.offsets.diff().tolist())])


def random_model(dim: int = 50, *, l2_normalize: bool = False) -> RandomModel:
    from genrec.models.item_table import ItemTable

    torch.manual_seed(3)
    return RandomModel(ItemTable(NUM_ITEMS, dim, std=0.5, l2_normalize=l2_normalize), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_real_scores_give_the_ranks_of_double_precision(l2_normalize: bool) -> None:
    """fp32 may order two items otherwise whose scores differ in the seventh digit, so a rank may be one off or two."""
    model, users = random_model(l2_normalize=l2_normalize), some_users(100)
    expected = torch.tensor(by_definition(copy.deepcopy(model).double(), users, 1)[0])
    found = ranked(model, users, 256).ranks
    assert int((found - expected).abs().max()) <= 2
    assert float((found == expected).double().mean()) >= 0.95


@pytest.mark.parametrize("dim", [3, 50, 64, 129])
@pytest.mark.parametrize("num_users", [1, 2, 33])
@pytest.mark.parametrize("workers", [1, 3])
def test_equal_items_tie_wherever_they_stand(dim: int, num_users: int, workers: int) -> None:
    """A collapsed model: all items have one vector, so all tie with the target and it must come last, in every chunk
    and shard, although none of the products is exact."""
    model, users = random_model(dim), some_users(num_users)
    with torch.no_grad():
        model.item_table.weight[1:] = model.item_table.weight[1].clone()
    users = EvaluationBatch(
        users.batch, users.users, users.targets, users.history_lengths, *[torch.zeros(0).long()] * 2
    )
    for found in shared(model, [users] + [placeholder_batch()] * (workers - 1), max_columns=200)[:1]:
        assert found.ranks.tolist() == [NUM_ITEMS] * num_users
        assert found.items.tolist() == [list(range(1, NUM_LISTED + 1))] * num_users


def rows_of(model: SequenceModel) -> Callable[[range], Tensor]:
    return lambda part: model.item_table.weight[part.start : part.stop].detach().clone()


def shared(model: SequenceModel, parts: list[EvaluationBatch], max_columns: int) -> list[Ranked]:
    """Each worker holds some rows of the model's table and asks for one of `parts`."""
    count = len(parts)

    def run(rank: int, all_reduce) -> Ranked:  # type: ignore[no-untyped-def]
        workers = Workers(rank, count, all_reduce)
        mine = copy.deepcopy(model)
        share_out(mine, rows_of(model), NUM_ITEMS, workers)
        with torch.no_grad():
            return rank_users(mine, parts[rank], workers, Limits(max_columns, NUM_LISTED), CPU)

    return together(run, count)


@pytest.mark.parametrize("max_columns", [10**6, 100])
@pytest.mark.parametrize("sizes", [[60], [31, 29], [20, 0, 40], [0, 1, 2, 3, 50]])
def test_shards_give_the_ranks_and_lists_of_the_whole_matrix(sizes: list[int], max_columns: int) -> None:
    model = WholeNumberModel(NUM_ITEMS)
    parts = [some_users(size, seed) if size else placeholder_batch() for seed, size in enumerate(sizes)]
    for part, found in zip(parts, shared(model, parts, max_columns), strict=True):
        expected = by_definition(model, part, NUM_LISTED) if len(part.targets) else ([], [])
        assert (found.ranks.tolist(), found.items.tolist()) == expected


def test_each_worker_holds_its_rows_only() -> None:
    model = WholeNumberModel(NUM_ITEMS)
    held = []
    for rank in range(4):
        mine = copy.deepcopy(model)
        share_out(mine, rows_of(model), NUM_ITEMS, Workers(rank, 4))
        held.append(sum(weight.numel() for weight in mine.parameters()))
        assert mine.item_table.weight.untyped_storage().nbytes() == 4 * held[-1]
    assert sum(held) == model.item_table.weight.numel()
    assert max(held) - min(held) <= model.item_table.dim


def test_a_score_that_is_not_a_number_is_an_error_on_every_worker() -> None:
    model = WholeNumberModel(NUM_ITEMS)
    with torch.no_grad():
        model.item_table.weight[1_400, 0] = float("nan")
    with pytest.raises(RunError, match="NaN"):
        ranked(model, some_users(5), 128)
    failed = []

    def run(rank: int, all_reduce) -> None:  # type: ignore[no-untyped-def]
        mine = copy.deepcopy(model)
        workers = Workers(rank, 2, all_reduce)
        share_out(mine, rows_of(model), NUM_ITEMS, workers)
        part = some_users(4) if rank else placeholder_batch()
        with pytest.raises(RunError, match="NaN"):
            rank_users(mine, part, workers, Limits(128), CPU)
        failed.append(rank)

    together(run, 2)
    assert sorted(failed) == [0, 1]


def test_chunks_are_even_and_within_the_limit() -> None:
    for num_columns in (1, 63, 64, 1_000, 10_000_001):
        for max_columns in (64, 100, 4_096, 131_072):
            width = chunk_width(num_columns, max_columns)
            assert 0 < width <= min(num_columns, max_columns)
            assert -(-num_columns // width) == -(-num_columns // max_columns)
