"""Cuts a user's training events into windows. How many there are, and how long, follows from lengths and ids alone.

A history of n training events gives m = n - 1 tokens: event i is the input whose target is event i + 1. A window is a
stretch `[start, start + length)` of tokens, so it reads `length + 1` events. With L = `sequence.max_length`:

    last        the newest min(m, L) tokens
    random      min(m, L) tokens from a place that is drawn anew in every epoch
    sliding     with stride s: the newest window ends at token m, the next at m - s, m - 2s, ..., each L tokens long,
                until one reaches token 0; that oldest one is cut there. Neighbours share L - s tokens, whose targets
                are trained in both; with s = L, the default, every token is in exactly one window
    stochastic  stochastic length (Zhai et al., 2024, arXiv 2402.17152, section 3.2), see `stochastic_lengths`
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.packing import IntArray


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How histories become windows; see `SequenceConfig`."""

    kind: str
    max_length: int
    stride: int
    alpha: float

    @property
    def drawn_by_user(self) -> bool:
        """Whether the lengths of an epoch depend on who the users are."""
        return self.kind == "stochastic"


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of the users of a chunk, [num_windows] each."""

    rows: IntArray
    """Row of the window's user, from 0."""
    starts: IntArray
    """First token that the window may read."""
    lengths: IntArray
    """Tokens that it does read."""
    slack: IntArray
    """Tokens of the stretch that are left out: the window reads `lengths` of `lengths + slack` tokens. 0 but for
    windows that stochastic length has shortened."""

    def take(self, order: IntArray) -> "Windows":
        """The windows `order` [num_windows]."""
        return Windows(self.rows[order], self.starts[order], self.lengths[order], self.slack[order])


def window_lengths(rule: WindowRule, tokens: IntArray, uniform: npt.NDArray[np.float64] | None) -> IntArray:
    """Lengths of all windows of users with `tokens` [num_users] tokens each; users without tokens have none.

    `uniform` [num_users] in [0, 1) decides who is shortened, see `uniform_by_user`; only "stochastic" reads it.
    """
    if rule.kind == "sliding":
        return _slide(rule, tokens)[2]
    lengths = np.minimum(tokens, rule.max_length)
    if uniform is not None:
        lengths = stochastic_lengths(lengths, rule.max_length, rule.alpha, uniform)
    return lengths[lengths > 0]


def cut_windows(
    rule: WindowRule,
    tokens: IntArray,
    uniform: npt.NDArray[np.float64] | None,
    generator: np.random.Generator,
) -> Windows:
    """The windows themselves, in the order of `window_lengths`."""
    if rule.kind == "sliding":
        rows, starts, lengths = _slide(rule, tokens)
        return Windows(rows, starts, lengths, np.zeros_like(lengths))
    rows = np.flatnonzero(tokens > 0)
    stretch = np.minimum(tokens[rows], rule.max_length)
    older = tokens[rows] - stretch
    starts = generator.integers(0, older + 1) if rule.kind == "random" else older
    lengths = stretch
    if uniform is not None:
        lengths = stochastic_lengths(stretch, rule.max_length, rule.alpha, uniform[rows])
    return Windows(rows, starts, lengths, stretch - lengths)


def stochastic_lengths(lengths: IntArray, max_length: int, alpha: float, uniform: npt.NDArray[np.float64]) -> IntArray:
    """Stochastic length: with N = `max_length`, a window of n > N^(alpha / 2) tokens stays whole with probability
    N^alpha / n^2, else it is shortened to floor(N^(alpha / 2)) tokens; shorter windows stay whole.

    `uniform` [num_windows] in [0, 1) are the draws. Arithmetic per user is then at most N^alpha on average. Which
    events a shortened window reads: `choose_events`.
    """
    short = int(max_length ** (alpha / 2))
    exact = lengths.astype(np.float64)
    keeps = (lengths <= short) | (uniform * exact * exact < float(max_length) ** alpha)
    return np.where(keeps, lengths, short)


def uniform_by_user(key: int, epoch: int, users: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each user: a function of `key` (64 bits), the epoch and the user's index alone.

    splitmix64 (Steele et al., 2014) over the three: no generator to advance, so a plan and a task that read different
    users draw the same.
    """
    state = _splitmix64(np.full(1, key % 2**64, dtype=np.uint64))
    state = _splitmix64(state ^ np.uint64(epoch))
    mixed = _splitmix64(state ^ users.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def choose_events(windows: Windows, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The events of all windows, window after window: `events` and `borders` [num_windows + 1].

    An event is its place in its user's history. A window of n tokens reads n + 1 events. One that stochastic length has
    shortened reads its stretch's last event and a uniform sample, without repeats, of the others, in order of time; the
    target of an event is then the next event that was chosen.
    """
    counts = windows.lengths + 1
    borders = np.concatenate([[0], np.cumsum(counts)])
    events = np.arange(borders[-1]) + np.repeat(windows.starts - borders[:-1], counts)
    for window in np.flatnonzero(windows.slack).tolist():
        stretch = int(windows.lengths[window] + windows.slack[window])
        chosen = np.sort(generator.permutation(stretch)[: windows.lengths[window]])
        first = borders[window]
        events[first : borders[window + 1] - 1] = windows.starts[window] + chosen
        events[borders[window + 1] - 1] = windows.starts[window] + stretch
    return events, borders


def _slide(rule: WindowRule, tokens: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Row, start and length of every window, newest first within a user."""
    older = np.maximum(tokens - rule.max_length, 0)
    counts = np.where(tokens > 0, 1 - (-older // rule.stride), 0)
    rows = np.repeat(np.arange(len(tokens)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = tokens[rows] - number * rule.stride
    starts = np.maximum(ends - rule.max_length, 0)
    return rows, starts, ends - starts


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
