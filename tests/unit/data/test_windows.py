"""Windows: how many, where, how long; stochastic length as the paper has it; what a plan counts is what a task cuts."""

import itertools

import numpy as np
import pytest

from genrec.data.windows import (
    WindowRule,
    choose_events,
    cut_windows,
    stochastic_lengths,
    uniform_by_user,
    window_lengths,
)

KINDS = ("last", "random", "sliding", "stochastic")


def rule_of(kind: str, max_length: int = 20, stride: int | None = None, alpha: float = 1.6) -> WindowRule:
    return WindowRule(kind, max_length, stride or max_length, alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_what_the_task_cuts(kind: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 90, 500)
    rule = rule_of(kind, stride=7 if kind == "sliding" else None)
    uniform = uniform_by_user(5, 2, np.arange(500)) if rule.drawn_by_user else None
    windows = cut_windows(rule, tokens, uniform, np.random.default_rng(1))
    assert windows.lengths.tolist() == window_lengths(rule, tokens, uniform).tolist()
    assert windows.lengths.min() >= 1
    assert windows.lengths.max() <= 20
    assert (windows.starts >= 0).all()
    assert (windows.starts + windows.lengths + windows.slack <= tokens[windows.rows]).all()
    assert set(windows.rows) == set(np.flatnonzero(tokens))


@pytest.mark.parametrize("stride", [1, 6, 20])
@pytest.mark.parametrize("tokens", [1, 5, 20, 21, 25, 26, 27, 40, 99])
def test_sliding_windows_cover_a_history_and_overlap_by_length_minus_stride(tokens: int, stride: int) -> None:
    windows = cut_windows(rule_of("sliding", stride=stride), np.array([tokens]), None, np.random.default_rng(0))
    spans = list(zip(windows.starts.tolist(), (windows.starts + windows.lengths).tolist(), strict=True))
    assert spans[0] == (max(tokens - 20, 0), tokens)
    assert {token for first, end in spans for token in range(first, end)} == set(range(tokens))
    assert len(spans) == (1 if tokens <= 20 else 1 + -(-(tokens - 20) // stride))
    for (newer_first, newer_end), (first, end) in itertools.pairwise(spans):
        assert end == newer_end - stride
        assert end - newer_first == 20 - stride
        assert first < newer_first
    if stride == 20:
        assert windows.lengths.sum() == tokens


def test_stochastic_length_is_the_papers_rule() -> None:
    """N = 4096, alpha = 1.6: to 776 tokens, but with probability N^alpha / n^2; its table 3 counts on that."""
    lengths = np.full(20_000, 4_096)
    uniform = uniform_by_user(1, 0, np.arange(20_000))
    found = stochastic_lengths(lengths, 4_096, 1.6, uniform)
    assert set(found) == {776, 4_096}
    assert (found == 4_096).mean() == pytest.approx(4_096**1.6 / 4_096**2, abs=0.004)
    assert stochastic_lengths(np.array([776, 10]), 4_096, 1.6, np.array([0.99, 0.99])).tolist() == [776, 10]
    assert stochastic_lengths(np.array([777]), 4_096, 1.6, np.array([0.9999])).tolist() == [776]
    assert stochastic_lengths(lengths[:3], 4_096, 2.0, np.array([0.0, 0.5, 0.99])).tolist() == [4_096] * 3


def test_draws_are_uniform_and_differ_by_user_epoch_and_key() -> None:
    users = np.arange(50_000)
    draws = [uniform_by_user(*key, users) for key in ((1, 0), (1, 1), (2, 0))]
    for draw in draws:
        assert draw.min() >= 0 and draw.max() < 1
        assert np.histogram(draw, 10, (0, 1))[0] == pytest.approx(np.full(10, 5_000), rel=0.06)
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.02 for a, b in ((draws[0], draws[1]), (draws[0], draws[2])))
    some = users[::-7]
    assert uniform_by_user(1, 0, some).tolist() == draws[0][some].tolist()


def test_a_shortened_window_reads_its_newest_event_and_a_uniform_sample_of_the_others() -> None:
    tokens = np.full(4_000, 30)
    windows = cut_windows(rule_of("stochastic", 20, alpha=1.0), tokens, np.full(4_000, 0.999), np.random.default_rng(0))
    assert set(windows.lengths) == {4}
    events, borders = choose_events(windows, np.random.default_rng(1))
    chosen = events.reshape(4_000, 5)
    assert borders.tolist() == list(range(0, 20_001, 5))
    assert (np.diff(chosen, axis=1) > 0).all()
    assert (chosen[:, -1] == 30).all()  # event 30 is the target of token 29, the newest
    counts = np.bincount(chosen[:, :-1].ravel(), minlength=30)
    assert counts[:10].sum() == 0
    assert counts[10:] == pytest.approx(np.full(20, 800), rel=0.15)


def test_whole_windows_read_one_event_more_than_tokens() -> None:
    windows = cut_windows(rule_of("last", 3), np.array([5, 0, 2]), None, np.random.default_rng(0))
    events, borders = choose_events(windows, np.random.default_rng(0))
    assert [events[a:b].tolist() for a, b in itertools.pairwise(borders)] == [[2, 3, 4, 5], [0, 1, 2]]
