"""From hidden states to the rank of each user's target and the best items, a chunk of the catalogue at a time.

Scores are never all there: [num_users, width] of them at a time, within `evaluation.max_scores_bytes`. The rank is a
count and needs no sort. To count who scores at least as much as the target, the target's score must be known first,
and must be the number that its own column would hold: of two ways to compute a product the last bits may differ, and
then an item with the target's own vector would no longer tie with it. So:

1. The first chunk begins with the vectors of the users' targets; their scores are its diagonal.
2. Every chunk is a product of the same shape; the last one goes back over columns that have been counted, which do not
   count again. Rows are filled up to a multiple of 8: with 1 to 3 rows the libraries take kernels in which a column's
   last bits depend on where it stands (tests/unit/evaluation/test_ranking.py, a model whose items are all alike).
3. The target's column is given the target's score, whatever is filtered there; column 0, padding, never counts.

Where the item table is shared out by rows (sharded_table.py), each worker counts in its own rows for all users, the
owner of a target's row tells its score, and counts are summed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.errors import RunError
from genrec.evaluation.metrics import count_true
from genrec.evaluation.scan import BLOCK, best_keys, block_maxima
from genrec.evaluation.sharded_table import ShardedItemTable
from genrec.evaluation.users import EvaluationBatch
from genrec.evaluation.workers import Workers
from genrec.models.base import SequenceModel
from genrec.models.item_table import ItemTable
from genrec.semantic.order import NOTHING, is_something, numbers_of, scores_of

ROWS = 8  # a product has a multiple of so many rows
COLUMNS = 64  # and, where there are several, of so many columns


@dataclass(frozen=True, slots=True)
class Limits:
    """What the chunks keep to: columns of a chunk at most, and how many of the best items are wanted (0: none)."""

    max_columns: int
    num_listed: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """Of some users the rank of the target [num_users] int64, and the best items [num_users, num_listed], best first.

    Items that score the same stand by index. Where fewer items may be recommended than asked for, the rest is 0.
    """

    ranks: Tensor
    items: Tensor


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of some users.

    hidden      [num_users, dim]  fp32, as it is scored
    targets     [num_users]       item indices
    seen_rows   [num_seen]        row of a user, and
    seen_items  [num_seen]        an item that does not count for that user, in rising order
    """

    hidden: Tensor
    targets: Tensor
    seen_rows: Tensor
    seen_items: Tensor


def rank_users(
    model: SequenceModel, users: EvaluationBatch, workers: Workers, limits: Limits, device: torch.device
) -> Ranked:
    """Ranks of these users' targets among all items; raises RunError when a score is not a number.

    With an item table that is shared out every worker calls it together, each with users of its own or none.
    """
    num_users = users.targets.shape[0]
    table = model.item_table
    hidden = model.last_hidden(users.batch.to(device))[:num_users]
    items, order = users.seen_items.sort()
    with torch.autocast(device.type, enabled=False):
        question = Question(
            table.normalized(hidden.float()),
            users.targets.to(device),
            users.seen_rows[order].to(device),
            items.to(device),
        )
        if isinstance(table, ShardedItemTable):
            found = _over_shards(question, table, workers, limits)
        else:
            # One call: ZeRO-3 gathers the weight for as long as it lasts.
            found = table(lambda weight: _search(question, table, weight, 0, limits, lambda scores: scores))
            _refuse_nan(found[:, 0])
    return Ranked(found[:, 0], _items_of(found[:, 1:]))


def _over_shards(question: Question, table: ShardedItemTable, workers: Workers, limits: Limits) -> Tensor:
    """As `_search`, for this worker's users, in the rows of all workers; one worker's users after another's."""
    hidden, targets = workers.gather_rows(question.hidden), workers.gather_rows(question.targets)
    rows, items = workers.gather_rows(question.seen_rows), workers.gather_rows(question.seen_items)
    mine = torch.zeros(0, 1 + limits.num_listed, dtype=torch.int64, device=question.hidden.device)
    for source, asked in enumerate(map(Question, hidden, targets, rows, items)):
        if asked.targets.shape[0] == 0:
            continue  # on all workers alike
        found = _search(asked, table, table.rows, table.first, limits, workers.sum)
        counts = workers.sum(found[:, 0].contiguous())
        _refuse_nan(counts)  # on all workers alike
        if limits.num_listed:
            keys = workers.gather(found[:, 1:].contiguous())  # [workers, num_users, num_listed]
            best = keys.transpose(0, 1).flatten(1).topk(limits.num_listed, dim=1).values
            found = torch.cat([counts.unsqueeze(1), best], dim=1)
        if source == workers.rank:
            mine = found if limits.num_listed else counts.unsqueeze(1)
    return mine


def _search(
    question: Question,
    table: ItemTable,
    rows: Tensor,
    first: int,
    limits: Limits,
    share: Callable[[Tensor], Tensor],
) -> Tensor:
    """Counts and best items among the items `first` .. `first + len(rows) - 1`, [num_users, 1 + num_listed] int64.

    Column 0 is how many of them score at least as much as the target, the target itself included, or far below 0 where
    a score is NaN; the others are keys (see order.py), best first. `share` makes the targets' scores, of which
    this worker knows those in its rows and has 0 for the others, everybody's.
    """
    num_users, num_rows = question.targets.shape[0], rows.shape[0]
    if num_users == 0:
        return torch.zeros(0, 1 + limits.num_listed, dtype=torch.int64, device=question.hidden.device)
    width = chunk_width(num_rows + num_users, max(limits.max_columns, num_users + COLUMNS))
    places = question.targets - first
    owned = (places >= 0) & (places < num_rows)
    vectors = torch.cat([rows[places.clamp(0, num_rows - 1)], rows[: width - num_users]])
    hidden = F.pad(question.hidden, (0, 0, 0, -num_users % ROWS))
    held = torch.empty(hidden.shape[0], width, device=hidden.device)  # memory asked for anew costs as much as a pass

    def score(vectors: Tensor) -> Tensor:
        columns = table.normalized(vectors.float()).T.contiguous()  # the product is 1.6 times as fast
        return torch.mm(hidden, columns, out=held)[:num_users]  # [num_users, width]

    scores = score(vectors)
    known = scores.diagonal()
    target_scores = share(torch.where(owned, known, torch.zeros_like(known)))
    tally = _Tally(question, target_scores, limits.num_listed)
    tally.add(scores[:, num_users:], first)
    done = width - num_users
    while done < num_rows:
        begin = max(0, min(done, num_rows - width))
        scores = score(rows[begin : begin + width])
        tally.add(scores[:, done - begin :], first + done)
        done = begin + width
    return torch.cat([tally.counts.unsqueeze(1), tally.keys], dim=1)


def _refuse_nan(counts: Tensor) -> None:
    if bool((counts < 0).any()):
        raise RunError(
            "The model scores items as NaN, so ranks mean nothing: training has diverged; lower optimizer.lr or set "
            "optimizer.gradient_clipping, and resume from an earlier checkpoint."
        )


def chunk_width(num_columns: int, max_columns: int) -> int:
    """Columns of each chunk: as few chunks as possible, of one width, a multiple of COLUMNS where there are several."""
    num_chunks = -(-num_columns // max_columns)
    if num_chunks == 1:
        return num_columns
    even = -(-num_columns // num_chunks)
    return min(-(-even // COLUMNS) * COLUMNS, max_columns)


class _Tally:
    """What has been counted so far of each user, chunk after chunk."""

    def __init__(self, question: Question, target_scores: Tensor, num_listed: int) -> None:
        num_users, device = question.targets.shape[0], question.hidden.device
        self.question = question
        self.target_scores = target_scores.unsqueeze(1)  # [num_users, 1]
        self.seen_on_cpu = question.seen_items.cpu()
        self.num_listed = num_listed
        self.counts = torch.zeros(num_users, dtype=torch.int64, device=device)
        self.keys = torch.full((num_users, num_listed), NOTHING, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, first: int) -> None:
        """Counts `scores` [num_users, num_columns] of the items from `first` on, each once; changes the scores."""
        num_columns = scores.shape[1]
        if num_columns == 0:
            return
        if first == 0:
            scores[:, 0] = -float("inf")
        begin, end = torch.searchsorted(self.seen_on_cpu, torch.tensor([first, first + num_columns])).tolist()
        seen_items = self.question.seen_items[begin:end] - first
        scores[self.question.seen_rows[begin:end], seen_items] = -float("inf")
        places = (self.question.targets - first).unsqueeze(1)
        columns = places.clamp(0, num_columns - 1)
        scores.scatter_(1, columns, torch.where(places == columns, self.target_scores, scores.gather(1, columns)))
        self.counts += count_true(scores >= self.target_scores)
        maxima = block_maxima(scores)
        largest = torch.cat([maxima, scores[:, maxima.shape[1] * BLOCK :]], dim=1).amax(dim=1)
        # It is NaN when any of a row is. Far below zero: no sum over chunks and workers lifts it.
        self.counts[largest.isnan()] -= 2**48
        if self.num_listed:
            least = torch.where(is_something(self.keys[:, -1]), scores_of(self.keys[:, -1]), -float("inf"))
            best = best_keys(scores, maxima, first, self.num_listed, least)
            self.keys = torch.cat([self.keys, best], dim=1).topk(self.num_listed, dim=1).values


def _items_of(keys: Tensor) -> Tensor:
    """The items that keys stand for; 0 where the score is -inf or there is none."""
    return torch.where(is_something(keys), numbers_of(keys), torch.zeros_like(keys))
