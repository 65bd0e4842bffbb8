"""Draws the histories of a block of users from a world, all users of the block one event at a time together."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from genrec.config import SyntheticSource
from genrec.data.synthetic_world import (
    CONTINUE_AT_START,
    CONTINUE_INSIDE,
    FIRST_ITEM,
    JOIN_SPAN_S,
    LOG_START_S,
    PAUSE_MAX_S,
    PAUSE_MEAN_S,
    REPEAT_AT_START,
    REPEAT_INSIDE,
    REPEAT_WINDOW,
    SESSION_GAP_MEAN_S,
    SESSION_GAP_MIN_S,
    SESSION_START,
    TASTE_SWITCH,
    Floats,
    Integers,
    World,
    week_of,
)

ACTIONS = ("stream", "skip", "save")
STREAM, SKIP, SAVE = range(3)
SAVE_PROBABILITY = 0.04

MIN_USER_EVENTS = 4
LENGTH_SHAPE = 4.0  # lengths are gamma with this shape: their standard deviation is half their mean
LONGEST = 4  # times the mean; caps the memory of a block

EVENTS_PER_BLOCK = 2**19
MIN_USERS_PER_BLOCK = 128  # shorter rows would spend their time in numpy's overhead


@dataclass(frozen=True, slots=True)
class UserBlock:
    """Histories of consecutive users: step t of every user is a row; users are in order of falling length.

    users    [num_users]             user ids
    lengths  [num_users]             events of each user, falling; rows t >= length hold nothing
    items    [num_steps, num_users]  item ids
    times    [num_steps, num_users]  seconds
    actions  [num_steps, num_users]  index into ACTIONS
    played_s [num_steps, num_users]  seconds played
    """

    users: Integers
    lengths: Integers
    items: Integers
    times: Integers
    actions: npt.NDArray[np.uint8]
    played_s: npt.NDArray[np.float32]

    def columns(self, chosen: Integers) -> "UserBlock":
        """The block with only the users at `chosen`, which must rise."""
        lengths = self.lengths[chosen]
        part = (slice(int(lengths[0])), chosen)
        return UserBlock(
            users=self.users[chosen],
            lengths=lengths,
            items=self.items[part],
            times=self.times[part],
            actions=self.actions[part],
            played_s=self.played_s[part],
        )


def users_per_block(source: SyntheticSource) -> int:
    """Users that are drawn together; a function of the source alone, so that every block can be drawn by itself."""
    return max(MIN_USERS_PER_BLOCK, EVENTS_PER_BLOCK * source.users // source.num_events)


def num_blocks(source: SyntheticSource) -> int:
    """Blocks of the whole log."""
    return -(-source.users // users_per_block(source))


class UserSampler:
    """Draws blocks of users of one source: block b is a pure function of the source and b."""

    def __init__(self, source: SyntheticSource, world: World) -> None:
        self._source = source
        self._world = world
        self._genre_shares = _cumulative_rows(world.tastes)
        starts = np.searchsorted(world.genre_of, np.arange(world.num_genres + 1))
        groups = [world.popularity[:, a:b] for a, b in pairwise(starts)]
        sums: Floats = np.concatenate([np.minimum(np.cumsum(group, axis=1), 1.0) for group in groups], axis=1)
        sums[:, starts[1:] - 1] = 1.0
        rows = np.arange(len(sums))[:, None] * world.num_genres
        self._collection_sums = (sums + rows + world.genre_of).ravel()

    def draw(self, block: int) -> UserBlock:
        """The histories of block `block`."""
        source = self._source
        rng = np.random.default_rng([source.seed, 1, block])
        per_block = users_per_block(source)
        ids = np.arange(block * per_block, min((block + 1) * per_block, source.users))
        mean = source.num_events / source.users
        drawn = np.rint(rng.gamma(LENGTH_SHAPE, mean / LENGTH_SHAPE, len(ids))).astype(np.int64)
        lengths = np.clip(drawn, MIN_USER_EVENTS, int(LONGEST * mean))
        order = np.argsort(-lengths, kind="stable")
        return self._play(rng, ids[order], lengths[order])

    def _play(self, rng: np.random.Generator, users: Integers, lengths: Integers) -> UserBlock:
        world, num_steps = self._world, int(lengths[0])
        shape = (num_steps, len(users))
        result = UserBlock(
            users=users,
            lengths=lengths,
            items=np.zeros(shape, dtype=np.int64),
            times=np.zeros(shape, dtype=np.int64),
            actions=np.zeros(shape, dtype=np.uint8),
            played_s=np.zeros(shape, dtype=np.float32),
        )
        taste = rng.integers(len(world.tastes), size=len(users))
        clock = LOG_START_S + rng.integers(JOIN_SPAN_S, size=len(users))
        played = np.zeros(len(users))
        active = np.searchsorted(-lengths, -np.arange(num_steps), side="left")  # users longer than t
        for step in range(num_steps):
            n = int(active[step])
            taste, clock, played = taste[:n], clock[:n], played[:n]
            starts = np.ones(n, dtype=np.bool_) if step == 0 else rng.random(n) < SESSION_START
            week = week_of(clock)
            if step:
                clock = clock + _gaps(rng, starts, played)
                opening = np.flatnonzero(starts)
                switching = opening[rng.random(len(opening)) < TASTE_SWITCH]
                taste[switching] = rng.integers(len(world.tastes), size=len(switching))
            items = self._next_items(rng, result.items[max(0, step - REPEAT_WINDOW) : step, :n], starts, taste, week)
            action, played = self._actions(rng, items)
            result.items[step, :n] = items
            result.times[step, :n] = clock
            result.actions[step, :n] = action
            result.played_s[step, :n] = played
        return result

    def _next_items(
        self, rng: np.random.Generator, recent: Integers, starts: npt.NDArray[np.bool_], taste: Integers, week: Integers
    ) -> Integers:
        """The next item of each user; `recent` [up to REPEAT_WINDOW, num_users] are the last events, oldest first."""
        items = np.empty(len(starts), dtype=np.int64)
        if len(recent) == 0:
            return self._explore(rng, taste, week)
        mechanism = rng.random(len(starts))
        repeat = np.where(starts, REPEAT_AT_START, REPEAT_INSIDE)
        carry_on = repeat + np.where(starts, CONTINUE_AT_START, CONTINUE_INSIDE)
        chosen = np.flatnonzero(mechanism < repeat)
        items[chosen] = recent[rng.integers(len(recent), size=len(chosen)), chosen]
        chosen = np.flatnonzero((mechanism >= repeat) & (mechanism < carry_on))
        items[chosen] = self._continue(rng, recent[-1, chosen])
        chosen = np.flatnonzero(mechanism >= carry_on)
        items[chosen] = self._explore(rng, taste[chosen], week[chosen])
        return items

    def _continue(self, rng: np.random.Generator, current: Integers) -> Integers:
        world = self._world
        collection = world.collection_of[current]
        in_order = rng.random(len(current)) < world.order[collection]
        return np.where(in_order, world.follows[current], self._any_item(rng, collection))

    def _explore(self, rng: np.random.Generator, taste: Integers, week: Integers) -> Integers:
        world = self._world
        genre = _draw(rng, self._genre_shares, taste) - taste * world.num_genres
        collection = _draw(rng, self._collection_sums, week * world.num_genres + genre) - week * len(world.first)
        opens = rng.random(len(taste)) < FIRST_ITEM
        return np.where(opens, world.first[collection], self._any_item(rng, collection))

    def _any_item(self, rng: np.random.Generator, collection: Integers) -> Integers:
        world = self._world
        position: Integers = (rng.random(len(collection)) * world.size[collection]).astype(np.int64)
        return world.first[collection] + position

    def _actions(self, rng: np.random.Generator, items: Integers) -> tuple[npt.NDArray[np.uint8], Floats]:
        """Action and seconds played. They depend on the item alone, so they say nothing about the next one."""
        world, kind = self._world, rng.random(len(items))
        fraction = rng.random(len(items))
        skipped = kind < world.skip[items]
        action = np.where(skipped, SKIP, np.where(kind > 1 - SAVE_PROBABILITY, SAVE, STREAM)).astype(np.uint8)
        played = np.where(skipped, 1 + 29 * fraction, world.duration_s[items] * (0.6 + 0.4 * fraction))
        return action, np.rint(played)


def _gaps(rng: np.random.Generator, starts: npt.NDArray[np.bool_], played: Floats) -> Integers:
    """Seconds since the event before: what was played and a pause inside a session, a long gap between two."""
    wait = rng.standard_exponential(len(starts))
    inside = played + 1 + np.minimum(wait * PAUSE_MEAN_S, PAUSE_MAX_S)
    gaps: Integers = np.where(starts, played + SESSION_GAP_MIN_S + wait * SESSION_GAP_MEAN_S, inside).astype(np.int64)
    return gaps


def _cumulative_rows(rows: Floats) -> Floats:
    """Row r as r + its running sum, rows one after another: one rising array that `_draw` searches for any row."""
    sums: Floats = np.minimum(np.cumsum(rows, axis=1), 1.0)
    sums[:, -1] = 1.0
    flat: Floats = (sums + np.arange(len(rows))[:, None]).ravel()
    return flat


def _draw(rng: np.random.Generator, cumulative: Floats, row: Integers) -> Integers:
    """A flat index of `cumulative`, drawn from row `row`; the factor keeps rounding from reaching the next row."""
    return cumulative.searchsorted(row + rng.random(len(row)) * (1 - 1e-9), side="right")
