"""Packing: every window once, budgets kept, costs even, steps independent of the number of micro-batches."""

import itertools

import numpy as np
import pytest

from genrec.data.packing import PackingRule, num_steps, pack


def lengths_of(kind: str, count: int, longest: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    if kind == "uniform":
        return generator.integers(1, longest + 1, count)
    return np.minimum(generator.zipf(1.2, count), longest)


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize("parts", [1, 2, 6])
@pytest.mark.parametrize("count", [1, 5, 400, 3_000])
def test_every_window_once_within_the_budget(kind: str, parts: int, count: int) -> None:
    lengths = lengths_of(kind, count, 100)
    rule = PackingRule(tokens_per_step=600 * parts, micro_batches_per_step=parts, steps_per_block=4)
    order, borders = pack(lengths, rule, np.random.default_rng(0))
    assert sorted(order) == list(range(count))
    steps = num_steps(lengths, rule)
    assert steps % 4 == 0
    assert len(borders) == steps * parts + 1
    tokens = [lengths[order[a:b]].sum() for a, b in itertools.pairwise(borders)]
    assert max(tokens) <= rule.tokens_per_micro_batch


def test_micro_batches_have_nearly_equal_cost() -> None:
    lengths = lengths_of("uniform", 20_000, 200)
    rule = PackingRule(tokens_per_step=16_000, micro_batches_per_step=2, steps_per_block=1)
    order, borders = pack(lengths, rule, np.random.default_rng(0))
    cost = np.array([(lengths[order[a:b]] ** 2).sum() for a, b in itertools.pairwise(borders)])
    tokens = np.array([lengths[order[a:b]].sum() for a, b in itertools.pairwise(borders)])
    assert cost.max() / cost.mean() < 1.03
    assert tokens.mean() / rule.tokens_per_micro_batch > 0.97


def test_a_step_holds_the_same_windows_however_many_micro_batches_share_it() -> None:
    lengths = lengths_of("uniform", 900, 50)
    steps = []
    for parts in (1, 2, 4):
        rule = PackingRule(tokens_per_step=2_000, micro_batches_per_step=parts, steps_per_block=2)
        order, borders = pack(lengths, rule, np.random.default_rng(3))
        steps.append([sorted(order[a:b]) for a, b in zip(borders[::parts], borders[parts::parts], strict=False)])
    assert steps[0] == steps[1] == steps[2]


def test_the_count_depends_on_the_lengths_alone() -> None:
    lengths = lengths_of("zipf", 2_000, 300)
    rule = PackingRule(tokens_per_step=1_200, micro_batches_per_step=2, steps_per_block=2)
    counts = {num_steps(np.random.default_rng(seed).permutation(lengths), rule) for seed in range(5)}
    assert len(counts) == 1


def test_no_windows_make_no_steps() -> None:
    rule = PackingRule(tokens_per_step=100, micro_batches_per_step=2, steps_per_block=4)
    order, borders = pack(np.zeros(0, dtype=np.int64), rule, np.random.default_rng(0))
    assert num_steps(np.zeros(0, dtype=np.int64), rule) == len(order) == 0
    assert list(borders) == [0]
