"""Packing: every window once, budgets kept and used, costs of a step's micro-batches even."""

import time

import numpy as np
import pytest

from genrec.data.packing import ATTENTION_LENGTH, PackingRule, micro_batch_cost, num_steps, pack, window_cost


def lengths_of(kind: str, count: int, longest: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    if kind == "uniform":
        return generator.integers(1, longest + 1, count)
    return np.minimum(generator.zipf(1.2, count), longest)


def of_tokens(kind: str, tokens: int, longest: int) -> np.ndarray:
    """As many windows as give about `tokens` tokens."""
    lengths = lengths_of(kind, tokens * 10 // longest + 1_000, longest)
    assert lengths.sum() > tokens
    return lengths[: np.searchsorted(np.cumsum(lengths), tokens)]


def sums(values: np.ndarray, order: np.ndarray, borders: np.ndarray, parts: int) -> np.ndarray:
    """Sums of a value per window over the micro-batches, [steps, parts]."""
    total = np.concatenate([[0], np.cumsum(values[order])])
    return np.diff(total[borders]).reshape(-1, parts)


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize("parts", [1, 2, 6])
@pytest.mark.parametrize("count", [1, 5, 400, 3_000])
def test_every_window_once_within_the_budget(kind: str, parts: int, count: int) -> None:
    lengths = lengths_of(kind, count, 100)
    rule = PackingRule(tokens_per_step=600 * parts, micro_batches_per_step=parts, steps_per_block=4)
    steps = num_steps(lengths, rule)
    order, borders = pack(lengths, rule, steps, np.random.default_rng(0))
    assert sorted(order) == list(range(count))
    assert len(borders) == steps * parts + 1
    assert sums(lengths, order, borders, parts).max() <= rule.tokens_per_micro_batch


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("windows_per_micro_batch", [4, 8, 32])
@pytest.mark.parametrize("longest", [50, 200, 1_024, 4_096])
def test_micro_batches_of_a_step_cost_the_same_and_are_full(
    longest: int, windows_per_micro_batch: int, parts: int
) -> None:
    """Zipf(1.2) lengths, as steep as logs get: within 3% at every step, 97% of the budget in tokens."""
    rule = PackingRule(max(longest * windows_per_micro_batch, 2_048) * parts, parts, steps_per_block=16)
    lengths = of_tokens("zipf", max(400_000, 40 * rule.tokens_per_step), longest)
    steps = num_steps(lengths, rule)
    order, borders = pack(lengths, rule, steps, np.random.default_rng(0))
    cost = sums(window_cost(lengths), order, borders, parts)
    assert ((cost.max(axis=1) - cost.min(axis=1)) / cost.max(axis=1)).max() < 0.03
    assert lengths.sum() / (steps * rule.tokens_per_step) > 0.97


@pytest.mark.parametrize("longest", [1_024, 4_096])
def test_windows_as_long_as_a_micro_batch_share_a_step_with_their_like(longest: int) -> None:
    """Nothing evens out a window that fills a micro-batch but another: on average over the steps it is found."""
    rule = PackingRule(longest * 4, 4, steps_per_block=16)
    lengths = of_tokens("zipf", 200 * rule.tokens_per_step, longest)
    steps = num_steps(lengths, rule)
    order, borders = pack(lengths, rule, steps, np.random.default_rng(0))
    cost = sums(window_cost(lengths), order, borders, 4)
    assert ((cost.max(axis=1) - cost.min(axis=1)) / cost.max(axis=1)).mean() < 0.01
    assert lengths.sum() / (steps * rule.tokens_per_step) > 0.97


def test_the_last_windows_that_fill_no_row_are_dealt_too() -> None:
    lengths = np.array([9, 9, 9, 9, 5])
    rule = PackingRule(tokens_per_step=40, micro_batches_per_step=4, steps_per_block=1)
    steps = num_steps(lengths, rule)
    order, borders = pack(lengths, rule, steps, np.random.default_rng(0))
    assert steps == 2
    assert sorted(sums(lengths, order, borders, 4).ravel().tolist()) == [0, 0, 0, 5, 9, 9, 9, 9]


def test_cost_counts_tokens_and_attention() -> None:
    assert micro_batch_cost(np.array([ATTENTION_LENGTH])) == 2 * ATTENTION_LENGTH
    assert micro_batch_cost(np.array([1, 2])) == pytest.approx(3 + 5 / ATTENTION_LENGTH)


def test_the_count_depends_on_the_lengths_alone() -> None:
    lengths = lengths_of("zipf", 2_000, 300)
    rule = PackingRule(tokens_per_step=1_200, micro_batches_per_step=2, steps_per_block=2)
    counts = {num_steps(np.random.default_rng(seed).permutation(lengths), rule) for seed in range(5)}
    assert len(counts) == 1


def test_equal_windows_steps_and_micro_batches_are_shuffled() -> None:
    lengths = of_tokens("zipf", 100_000, 100)
    rule = PackingRule(tokens_per_step=4_000, micro_batches_per_step=4, steps_per_block=1)
    steps = num_steps(lengths, rule)
    first, second = (pack(lengths, rule, steps, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(first[0], second[0])
    again = pack(lengths, rule, steps, np.random.default_rng(1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    # Long and short windows are mixed inside a micro-batch, and the longest is not always in the same part.
    inside = [lengths[first[0][a:b]] for a, b in zip(first[1], first[1][1:], strict=False)]
    assert sum((np.diff(found) > 0).any() for found in inside) > 0.9 * len(inside)


def test_packing_keeps_up_with_a_stream() -> None:
    """Two million events a second; ten times less is only met when the cost has become quadratic."""
    lengths = of_tokens("zipf", 2_000_000, 4_096)
    rule = PackingRule(tokens_per_step=65_536, micro_batches_per_step=4, steps_per_block=16)
    started_at = time.process_time()
    pack(lengths, rule, num_steps(lengths, rule), np.random.default_rng(0))
    assert lengths.sum() / (time.process_time() - started_at) > 200_000


def test_no_windows_make_no_steps() -> None:
    rule = PackingRule(tokens_per_step=100, micro_batches_per_step=2, steps_per_block=4)
    none = np.zeros(0, dtype=np.int64)
    order, borders = pack(none, rule, 0, np.random.default_rng(0))
    assert num_steps(none, rule) == len(order) == 0
    assert list(borders) == [0]
