"""Deals windows into steps and micro-batches of one token budget and nearly equal attention cost.

The longest windows are dealt first, back and forth over the steps like cards (a "snake"), then the same way over the
micro-batches of each step. So every micro-batch gets the same number of windows (give or take one), nearly the same
tokens and nearly the same sum of squared lengths; and which windows make a step does not depend on how many
micro-batches share it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


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


def num_steps(lengths: IntArray, rule: PackingRule) -> int:
    """Steps that windows of these lengths [num_windows] fill: a multiple of `steps_per_block`, 0 without windows.

    It depends on the multiset of lengths alone, so a plan can count steps without reading events. Empty windows must
    be removed first, and none may be longer than `rule.tokens_per_micro_batch`.
    """
    if not len(lengths):
        return 0
    falling = np.sort(lengths)[::-1]
    block = rule.steps_per_block
    steps = _round_up(-(-int(falling.sum()) // rule.tokens_per_step), block)
    # Dealing leaves bins within one window of each other, so this ends after a round or two; with one window a
    # micro-batch it always holds.
    while _largest_micro_batch(falling, steps, rule.micro_batches_per_step) > rule.tokens_per_micro_batch:
        steps += block
    return steps


def pack(lengths: IntArray, rule: PackingRule, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The windows of each micro-batch: `order` [num_windows] and `borders` [num_micro_batches + 1].

    Micro-batch `k` holds windows `order[borders[k]:borders[k + 1]]`; micro-batches `s * parts .. s * parts + parts - 1`
    make step `s`. Windows of equal length and the steps themselves are shuffled by `generator`.
    """
    steps, parts = num_steps(lengths, rule), rule.micro_batches_per_step
    shuffled = generator.permutation(len(lengths))
    falling = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    step, part = _deal(len(lengths), steps, parts)
    bins = generator.permutation(steps)[step] * parts + part if steps else step
    by_bin = np.argsort(bins, kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=steps * parts))])
    return falling[by_bin], borders.astype(np.int64)


def _largest_micro_batch(falling: IntArray, steps: int, parts: int) -> int:
    step, part = _deal(len(falling), steps, parts)
    return int(np.bincount(step * parts + part, weights=falling).max())


def _deal(num_windows: int, steps: int, parts: int) -> tuple[IntArray, IntArray]:
    """Step and part of the i-th longest window."""
    row, step = _snake(np.arange(num_windows), max(steps, 1))
    _, part = _snake(row, parts)
    return step, part


def _snake(index: IntArray, width: int) -> tuple[IntArray, IntArray]:
    """Row and column when `index` runs left to right in even rows and right to left in odd ones."""
    row, column = np.divmod(index, width)
    return row, np.where(row % 2 == 0, column, width - 1 - column)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
