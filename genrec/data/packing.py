"""Deals windows into steps and micro-batches of one token budget and nearly equal cost.

1. Windows are sorted by length and cut into rows of one window for each micro-batch of a step. The windows of a row are
   neighbours in that order, so nearly all rows hold equal lengths.
2. Whole rows are dealt to the steps, longest first, each to the step with the fewest tokens. A step may get two rows of
   long windows and its neighbour one and many short ones: what counts is that the micro-batches of *one* step, which
   workers compute side by side, are alike.
3. Inside a step, rows of equal lengths are dealt as they stand; the others longest window to cheapest micro-batch.
   A step that is still uneven is dealt again, window by window.

The count of steps and the size of each follow from the multiset of lengths alone.

A run that goes on with another number of micro-batches keeps its steps: `deal_anew` deals the windows of each into as
many as are wanted now.
"""

import heapq
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

ATTENTION_LENGTH = 1_024
"""Window length at which attention costs as much as everything else: about 6 to 12 times a model's width, and
independent of the number of layers. Models of width 64 to 256 lie around it."""

UNEVEN = 0.01
"""Spread of costs within a step from which it is dealt again, window by window."""


@dataclass(frozen=True, slots=True)
class PackingRule:
    """What a step is made of; see `BatchConfig`."""

    tokens_per_step: int
    micro_batches_per_step: int
    steps_per_block: int

    @property
    def tokens_per_micro_batch(self) -> int:
        """The most tokens that a micro-batch may hold."""
        return self.tokens_per_step // self.micro_batches_per_step


def window_cost(lengths: npt.NDArray[np.integer]) -> FloatArray:
    """Cost of each window, in tokens of a window without attention: n + n^2 / `ATTENTION_LENGTH`."""
    exact = lengths.astype(np.float64)
    return exact + exact * exact / ATTENTION_LENGTH


def micro_batch_cost(lengths: npt.NDArray[np.integer]) -> float:
    """What a micro-batch of windows of these lengths costs: its tokens, and its attention (`window_cost`)."""
    return float(window_cost(lengths).sum())


def num_steps(lengths: IntArray, rule: PackingRule) -> int:
    """Steps that windows of these lengths [num_windows] fill, 0 without windows.

    It depends on the multiset of lengths alone, so a plan can count steps without reading events. Empty windows must
    be removed first, and none may be longer than `rule.tokens_per_micro_batch`.
    """
    if not len(lengths):
        return 0
    falling = np.sort(lengths)[::-1]
    steps = _fewest_steps(falling, rule)
    # Dealing leaves little room unused, so this ends after a round or two; with one row a step it always holds.
    while not _fits(falling, steps, rule):
        steps += max(1, steps // 100)
    return steps


def pack(lengths: IntArray, rule: PackingRule, steps: int, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The windows of each micro-batch of `steps` = `num_steps(lengths, rule)` steps.

    Returns `order` [num_windows] and `borders` [num_micro_batches + 1]: micro-batch `k` holds windows
    `order[borders[k]:borders[k + 1]]`; micro-batches `s * parts .. s * parts + parts - 1` make step `s`. Windows of
    equal length, the micro-batches of a step, the windows in a micro-batch and the steps are shuffled by `generator`.
    """
    parts = rule.micro_batches_per_step
    shuffled = generator.permutation(len(lengths))
    falling = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bins = _deal(lengths[falling], steps, rule)
    # One permutation of the steps, and one of the parts of each.
    new_parts = generator.permuted(np.tile(np.arange(parts), (steps, 1)), axis=1)
    new_bins = (generator.permutation(steps)[:, None] * parts + new_parts).ravel()
    bins = new_bins[bins] if len(bins) else bins
    mixed = generator.permutation(len(bins))
    by_bin = mixed[np.argsort(bins[mixed], kind="stable")]
    borders = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=steps * parts))])
    return falling[by_bin], borders.astype(np.int64)


def deal_anew(lengths: IntArray, borders: IntArray, rule: PackingRule, parts: int) -> tuple[IntArray, IntArray]:
    """The same steps in `parts` micro-batches each: `lengths` of windows and `borders` as `pack` has put them.

    Returns another order of those windows, and its borders. Where the windows of a step do not fit into micro-batches
    of tokens_per_step / `parts` tokens, some hold more, by one window at most: the steps are not to be changed.
    """
    step_borders = borders[:: rule.micro_batches_per_step]
    rule, steps = replace(rule, micro_batches_per_step=parts), len(step_borders) - 1
    counts = np.diff(step_borders)
    step = np.repeat(np.arange(steps), counts)
    order = np.lexsort((-lengths, step))
    rows_of_step = -(-counts // parts)
    place = np.arange(len(lengths)) - step_borders[step]
    row, column = (np.cumsum(rows_of_step) - rows_of_step)[step] + place // parts, place % parts
    rows: IntArray = np.zeros((int(rows_of_step.sum()), parts), dtype=np.int64)
    rows[row, column] = lengths[order]
    part = np.tile(np.arange(parts), (len(rows), 1))
    spread = _even_parts(rows, np.repeat(np.arange(steps), rows_of_step), part, steps)
    bins = step * parts + part[row, column]
    # Of any micro-batches, one holds no more than its share, so a window always fits into that and its own length.
    _deal_uneven_again(bins, lengths[order], spread, rule, more_room=int(lengths.max(initial=0)))
    new_borders = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=steps * parts))])
    return order[np.argsort(bins, kind="stable")], new_borders.astype(np.int64)


def _fewest_steps(falling: IntArray, rule: PackingRule) -> int:
    """A lower bound: all tokens must fit, and of windows longer than 1 / (k + 1) of a micro-batch at most k do."""
    parts, room = rule.micro_batches_per_step, rule.tokens_per_micro_batch
    bounds = [-(-int(falling.sum()) // (room * parts))]
    for k in range(1, 9):
        long = int(np.searchsorted(-falling, -(room // (k + 1)), side="left"))
        bounds.append(-(-long // (k * parts)))
    return max(bounds)


def _fits(falling: IntArray, steps: int, rule: PackingRule) -> bool:
    tokens = np.bincount(_deal(falling, steps, rule), weights=falling)
    return bool(tokens.max() <= rule.tokens_per_micro_batch)


def _deal(falling: IntArray, steps: int, rule: PackingRule) -> IntArray:
    """Step * parts + part of each window; `falling` are their lengths, longest first."""
    parts = rule.micro_batches_per_step
    if not len(falling):
        return np.zeros(0, dtype=np.int64)
    num_rows = -(-len(falling) // parts)
    rows: IntArray = np.zeros((num_rows, parts), dtype=np.int64)
    rows.ravel()[: len(falling)] = falling
    step_of_row = _deal_rows(rows.sum(axis=1), steps)
    part = np.tile(np.arange(parts), (num_rows, 1))
    spread = _even_parts(rows, step_of_row, part, steps)
    bins = (step_of_row[:, None] * parts + part).ravel()[: len(falling)]
    _deal_uneven_again(bins, falling, spread, rule)
    return bins


def _deal_uneven_again(
    bins: IntArray, falling: IntArray, spread: FloatArray, rule: PackingRule, more_room: int = 0
) -> None:
    """Deals the steps whose `spread` is large, or that have a too full micro-batch, window by window; changes `bins`.

    `falling` are the lengths of the windows in `bins`; those of a step must stand there longest first. A step that is
    too full and cannot be dealt within the budget gets `more_room`, if there is any.
    """
    steps, parts, room = len(spread), rule.micro_batches_per_step, rule.tokens_per_micro_batch
    full = np.bincount(bins, weights=falling, minlength=steps * parts).reshape(steps, parts).max(axis=1)
    uneven = np.flatnonzero((spread > UNEVEN) | (full > room))
    if len(uneven):
        by_step = np.argsort(bins // parts, kind="stable")
        borders = np.searchsorted(bins[by_step] // parts, np.arange(steps + 1))
        for step in uneven:
            members = by_step[borders[step] : borders[step + 1]]
            dealt = _deal_windows(falling[members], parts, room)
            if dealt is None and full[step] > room and more_room:
                dealt = _deal_windows(falling[members], parts, room + more_room)
            if dealt is not None:
                bins[members] = step * parts + dealt


def _deal_rows(tokens: IntArray, steps: int) -> IntArray:
    """The step of each row: rows by falling `tokens`, each to the step that has the fewest.

    Rows of equal size are dealt at once, so the cost follows the number of different sizes.
    """
    step_of_row = np.empty(len(tokens), dtype=np.int64)
    loads = np.zeros(steps, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(tokens)) + 1, [len(tokens)]])
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        size = int(tokens[first])
        if last - first == 1:
            step = int(np.argmin(loads))
            step_of_row[first] = step
            loads[step] += size
        else:
            counts = _fill_evenly(loads, size, last - first)
            step_of_row[first:last] = np.repeat(np.arange(steps), counts)
            loads += counts * size
    return step_of_row


def _fill_evenly(loads: IntArray, size: int, count: int) -> IntArray:
    """How many of `count` equal pieces each bin gets when every piece goes to the lowest bin."""
    room = (int(loads.max()) - loads) // size  # pieces that a bin takes before it is as high as the highest
    if int(room.sum()) > count:
        # The water level below the highest bin that holds just as many pieces or a few less.
        low, high = int(loads.min()), int(loads.max())
        while low < high:
            level = (low + high + 1) // 2
            fits = int((np.maximum(level - loads, 0) // size).sum()) <= count
            low, high = (level, high) if fits else (low, level - 1)
        room = np.maximum(low - loads, 0) // size
    counts: IntArray = room + (count - int(room.sum())) // len(loads)
    lowest = np.argsort(loads + counts * size, kind="stable")
    counts[lowest[: count - int(counts.sum())]] += 1
    return counts


def _even_parts(rows: IntArray, step_of_row: IntArray, part: IntArray, steps: int) -> FloatArray:
    """Sets `part` of the rows with unequal lengths: the longest window to the cheapest micro-batch so far.

    Returns the spread of each step, (highest - lowest) / highest cost of its micro-batches.
    """
    parts = rows.shape[1]
    mixed = np.flatnonzero(rows[:, 0] != rows[:, -1])
    equal = np.bincount(step_of_row, weights=window_cost(rows[:, 0]), minlength=steps)
    equal -= np.bincount(step_of_row[mixed], weights=window_cost(rows[mixed, 0]), minlength=steps)
    costs = np.repeat(equal[:, None], parts, axis=1)
    by_step = mixed[np.argsort(step_of_row[mixed], kind="stable")]
    firsts = np.searchsorted(step_of_row[by_step], np.arange(steps + 1))
    for level in range(int(np.diff(firsts).max(initial=0))):
        have = np.flatnonzero(firsts[:-1] + level < firsts[1:])
        chosen = by_step[firsts[have] + level]
        cheapest = np.argsort(costs[have], axis=1, kind="stable")
        part[chosen] = cheapest
        np.add.at(costs, (have[:, None], cheapest), window_cost(rows[chosen]))
    highest = costs.max(axis=1)
    spread: FloatArray = np.divide(highest - costs.min(axis=1), highest, out=np.zeros(steps), where=highest > 0)
    return spread


def _deal_windows(falling: IntArray, parts: int, room: int) -> IntArray | None:
    """The part of each window of one step, each to the cheapest part that has room for it; None when one has none."""
    result = np.empty(len(falling), dtype=np.int64)
    cheapest = [(0.0, part, 0) for part in range(parts)]
    costs = window_cost(falling).tolist()
    for index, (length, cost) in enumerate(zip(falling.tolist(), costs, strict=True)):
        full = []
        while cheapest and cheapest[0][2] + length > room:
            full.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        so_far, part, tokens = cheapest[0]
        heapq.heapreplace(cheapest, (so_far + cost, part, tokens + length))
        result[index] = part
        for entry in full:
            heapq.heappush(cheapest, entry)
    return result
