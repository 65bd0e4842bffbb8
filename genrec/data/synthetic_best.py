"""The best metrics that any model can reach on a synthetic log's test events (leave-one-out: each user's last event).

The world says the probability of every item given a user's history, so the best ranking is known: items by falling
probability. It maximises HR, NDCG and MRR at every cut-off at once, since all three weigh ranks by falling factors.

1. Filter: the probability of each hidden taste given the history, one event at a time (the forward algorithm of a
   hidden Markov model). An event's probability is `known + explore * tastes[:, genre]`; only the second part depends
   on the taste. A history's times tell where its sessions start.
2. Predict: the probability of every item as the next event, [num_users, num_items].
3. Rank and add up: the expected HR@k is the sum of the k largest probabilities, and likewise for NDCG and MRR.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import SyntheticSource
from genrec.data.synthetic_users import UserBlock, UserSampler, num_blocks
from genrec.data.synthetic_world import (
    CONTINUE_AT_START,
    CONTINUE_INSIDE,
    REPEAT_AT_START,
    REPEAT_INSIDE,
    REPEAT_WINDOW,
    SESSION_GAP_MIN_S,
    SESSION_START,
    TASTE_SWITCH,
    Floats,
    Integers,
    World,
    week_of,
)

CUTOFFS = (1, 5, 10, 20, 50, 100)
MAX_USERS = 20_000
MAX_EVENTS = 4_000_000  # of the users that are measured
MAX_SCORES = 400_000_000  # users * items, about 20 seconds of one core
MIN_USERS = 200
SCORES_AT_A_TIME = 2_000_000  # 16 MB


def best_known_key(metric: str, *, uses_query_time: bool) -> str:
    """The key of a metric (`hr@10`) in the best known metrics; a model that reads the query time can reach more."""
    return metric + "/query-time" * uses_query_time


@dataclass(frozen=True, slots=True)
class LastEvents:
    """What is known before each user's last event, and that event.

    recent  [REPEAT_WINDOW, num_users]  the last items of the history, oldest first; -1 where it is shorter
    taste   [num_users, num_tastes]     probability of each taste given the history
    week    [num_users]                 week of the season
    starts  [num_users]                 whether the last event starts a session: only its own time tells
    target  [num_users]                 the last event's item
    """

    recent: Integers
    taste: Floats
    week: Integers
    starts: npt.NDArray[np.bool_]
    target: Integers

    def __len__(self) -> int:
        return len(self.target)

    def between(self, begin: int, end: int) -> "LastEvents":
        """The last events of users `begin` to `end`."""
        part = slice(begin, end)
        return LastEvents(self.recent[:, part], self.taste[part], self.week[part], self.starts[part], self.target[part])


def best_known(source: SyntheticSource, world: World) -> dict[str, float]:
    """Best HR, NDCG and MRR at CUTOFFS of the unfiltered ranking, by `best_known_key`.

    Expected values over a sample of the users; they are exchangeable, so the log's first blocks are drawn again.
    `hr@10/standard-error` is that of the mean over the sample, `hr@10/realised` the share of the sample's last events
    that the best ranking had in its first ten, and `users` the size of the sample.
    """
    limit = max(
        MIN_USERS, min(MAX_USERS, MAX_SCORES // world.num_items, MAX_EVENTS * source.users // source.num_events)
    )
    sums = {uses_query_time: np.zeros((3, len(CUTOFFS))) for uses_query_time in (False, True)}
    expected_hits: list[Floats] = []
    realised = 0
    for events in _sampled_events(source, world, limit):
        for uses_query_time, total in sums.items():
            probability = next_item_probability(world, events, uses_query_time=uses_query_time)
            best = _largest(probability, CUTOFFS[-1])
            total += _metric_sums(best)
            if not uses_query_time:
                expected_hits.append(best[:, :10].sum(axis=1))
                realised += _hits(probability, events.target, 10)
    hits = np.concatenate(expected_hits)
    result = {
        best_known_key(f"{metric}@{k}", uses_query_time=uses_query_time): float(total[row, column] / len(hits))
        for uses_query_time, total in sums.items()
        for row, metric in enumerate(("hr", "ndcg", "mrr"))
        for column, k in enumerate(CUTOFFS)
    }
    spread = float(hits.std() / np.sqrt(len(hits)))
    return result | {"hr@10/standard-error": spread, "hr@10/realised": realised / len(hits), "users": float(len(hits))}


def next_item_probability(world: World, events: LastEvents, *, uses_query_time: bool) -> Floats:
    """Probability of every item as the last event, [num_users, num_items], given the history before it.

    With `uses_query_time` also given the last event's own time, which tells whether it starts a session.
    """
    session_start = events.starts.astype(np.float64) if uses_query_time else np.full(len(events), SESSION_START)
    inside = 1 - session_start
    repeat = REPEAT_AT_START * session_start + REPEAT_INSIDE * inside
    carry_on = CONTINUE_AT_START * session_start + CONTINUE_INSIDE * inside
    starting_taste = _drift(events.taste)
    explore = (1 - REPEAT_INSIDE - CONTINUE_INSIDE) * inside[:, None] * (events.taste @ world.tastes)
    explore += (1 - REPEAT_AT_START - CONTINUE_AT_START) * session_start[:, None] * (starting_taste @ world.tastes)

    items, users = np.arange(world.num_items), np.arange(len(events))
    result = world.explore_probability(events.week[:, None], items)  # [num_users, num_items]
    result *= explore[:, world.genre_of[world.collection_of]]
    for step in events.recent:
        known = step >= 0
        result[users[known], step[known]] += (repeat / (events.recent >= 0).sum(axis=0))[known]
    current = events.recent[-1]
    collection = world.collection_of[current]
    result[users, world.follows[current]] += carry_on * world.order[collection]
    for position in range(int(world.size.max())):
        holds = position < world.size[collection]
        share = carry_on * (1 - world.order[collection]) / world.size[collection]
        result[users[holds], world.first[collection[holds]] + position] += share[holds]
    return result


def last_events(world: World, block: UserBlock) -> LastEvents:
    """The last event of every user of a block, and what is known before it."""
    num_users = len(block.users)
    taste = np.full((num_users, len(world.tastes)), 1 / len(world.tastes))
    for step in range(int(block.lengths[0]) - 1):
        n = int(np.searchsorted(-block.lengths, -(step + 1), side="left"))  # users whose history holds this step
        taste[:n] = _after_event(world, block, step, taste[:n])
    last, users = block.lengths - 1, np.arange(num_users)
    steps = last - np.arange(REPEAT_WINDOW, 0, -1)[:, None]
    recent = np.where(steps >= 0, block.items[np.maximum(steps, 0), users], -1)
    return LastEvents(
        recent=recent,
        taste=taste,
        week=week_of(block.times[last - 1, users]),
        starts=_starts(block, last, users),
        target=block.items[last, users],
    )


def _after_event(world: World, block: UserBlock, step: int, taste: Floats) -> Floats:
    """Probability of each taste after event `step` of the first users of a block, given that before it."""
    users = np.arange(len(taste))
    item = block.items[step, users]
    genre = world.genre_of[world.collection_of[item]]
    if step == 0:
        return _normalised(taste * world.tastes[:, genre].T)
    starts = _starts(block, np.full(len(users), step), users)
    repeat = np.where(starts, REPEAT_AT_START, REPEAT_INSIDE)
    carry_on = np.where(starts, CONTINUE_AT_START, CONTINUE_INSIDE)
    recent = block.items[max(0, step - REPEAT_WINDOW) : step, users]
    collection = world.collection_of[recent[-1]]
    order = world.order[collection]
    same_collection = (collection == world.collection_of[item]) / world.size[collection]
    known = repeat * (recent == item).mean(axis=0)
    known += carry_on * (order * (world.follows[recent[-1]] == item) + (1 - order) * same_collection)
    explore = (1 - repeat - carry_on) * world.explore_probability(week_of(block.times[step - 1, users]), item)
    before = np.where(starts[:, None], _drift(taste), taste)
    return _normalised(before * (known[:, None] + explore[:, None] * world.tastes[:, genre].T))


def _normalised(weight: Floats) -> Floats:
    result: Floats = weight / weight.sum(axis=1, keepdims=True)
    return result


def _drift(taste: Floats) -> Floats:
    """The probabilities when a session starts: now and then with a newly drawn taste."""
    result: Floats = (1 - TASTE_SWITCH) * taste + TASTE_SWITCH / taste.shape[1]
    return result


def _starts(block: UserBlock, step: Integers, users: Integers) -> npt.NDArray[np.bool_]:
    gap = block.times[step, users] - block.times[step - 1, users]
    result: npt.NDArray[np.bool_] = gap >= SESSION_GAP_MIN_S
    return result


def _sampled_events(source: SyntheticSource, world: World, limit: int) -> Iterator[LastEvents]:
    """Test events of the first `limit` users' blocks, a few users at a time."""
    sampler = UserSampler(source, world)
    at_a_time = max(1, SCORES_AT_A_TIME // world.num_items)
    for block in range(num_blocks(source)):
        drawn = sampler.draw(block)
        chosen = np.sort(np.random.default_rng([source.seed, 2, block]).permutation(len(drawn.users))[:limit])
        events = last_events(world, drawn.columns(chosen))
        for begin in range(0, len(events), at_a_time):
            yield events.between(begin, begin + at_a_time)
        limit -= len(events)
        if limit == 0:
            return


def _largest(probability: Floats, k: int) -> Floats:
    """The k largest probabilities of each row, falling, [num_users, k]."""
    cut = probability.shape[1] - k
    return -np.sort(-np.partition(probability, cut, axis=1)[:, cut:], axis=1)


def _metric_sums(best: Floats) -> Floats:
    """Expected HR, NDCG and MRR at each cut-off, added over users, [3, num_cutoffs]; `best` falls along rows."""
    total, rank = best.sum(axis=0), np.arange(1, best.shape[1] + 1)
    weighted = np.stack([total, total / np.log2(rank + 1), total / rank]).cumsum(axis=1)
    result: Floats = weighted[:, np.array(CUTOFFS) - 1]
    return result


def _hits(probability: Floats, target: Integers, k: int) -> int:
    """Rows whose target is among the k most probable items; the lower item id wins a tie, whatever the target."""
    own = probability[np.arange(len(target)), target][:, None]
    earlier = np.arange(probability.shape[1]) < target[:, None]
    rank = (probability > own).sum(axis=1) + ((probability == own) & earlier).sum(axis=1)
    return int((rank < k).sum())
