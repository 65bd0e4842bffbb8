"""Beam search: sorted, unique and valid; with a wide beam it is what scoring every item gives, filters and ties too."""

import numpy as np
import pytest
import torch
from code_catalogue import TableScorer, batch_of, best_of, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError
from genrec.semantic.beam import beam_search
from genrec.semantic.trie import CodeTrie

SIZES = (4, 3, 5)
NUM_USERS = 3


@st.composite
def searches(draw: st.DrawFn) -> dict:
    """A catalogue, a filter on items, pairs to exclude and a scorer, with many ties or none."""
    num_items = draw(st.integers(1, 40))
    num_pairs = draw(st.integers(0, 60))
    pairs = [(draw(st.integers(0, NUM_USERS - 1)), draw(st.integers(1, num_items))) for _ in range(num_pairs)]
    return {
        "ids": random_ids(num_items, SIZES, draw(st.integers(0, 99))),
        "allowed": torch.tensor([False, *draw(st.lists(st.booleans(), min_size=num_items, max_size=num_items))]),
        "exclude": tuple(torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)),
        "scorer": TableScorer(SIZES, NUM_USERS, draw(st.integers(0, 99)), draw(st.sampled_from([0, 2]))),
        "k": draw(st.integers(1, 12)),
        "dense_entries": draw(st.sampled_from([0, 10, 2**20])),
    }


@settings(max_examples=60, deadline=None)
@given(searches(), st.booleans(), st.booleans())
def test_a_wide_beam_is_exhaustive(search, filters_types, filters_seen) -> None:
    ids, scorer, k = search["ids"], search["scorer"], search["k"]
    trie = CodeTrie.from_ids(ids, dense_entries=search["dense_entries"])
    scores = scorer.score_items(ids)
    exclude = None
    if filters_types and search["allowed"].any():
        trie = trie.restricted_to(search["allowed"])
        scores[:, ~search["allowed"]] = -float("inf")
    if filters_seen:
        exclude = search["exclude"]
        scores[exclude] = -float("inf")
    items, values = beam_search(scorer, batch_of(NUM_USERS), trie, 60, k, exclude=exclude)
    assert (items.tolist(), values.tolist()) == best_of(scores, k)
    assert (items.dtype, values.dtype) == (torch.int64, torch.float32)


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 12), st.sampled_from([None, 1, 2]))
def test_any_beam_is_sorted_unique_and_valid(search, width, cap) -> None:
    ids, scorer, k = search["ids"], search["scorer"], min(search["k"], width)
    trie = CodeTrie.from_ids(ids, dense_entries=search["dense_entries"])
    rows, seen = search["exclude"]
    found = beam_search(scorer, batch_of(NUM_USERS), trie, width, k, exclude=(rows, seen), max_per_prefix=cap)
    scores = scorer.score_items(ids)
    for user, (items, values) in enumerate(zip(found[0].tolist(), found[1].tolist(), strict=True)):
        real = [item for item in items if item]
        assert items == real + [0] * (k - len(real)), "what is missing comes last"
        assert len(set(real)) == len(real)
        assert not set(real) & set(seen[rows == user].tolist())
        assert values == [scores[user, item].item() for item in items]
        assert sorted(zip(-np.array(values), items, strict=True)) == list(zip(-np.array(values), items, strict=True))
        if cap is not None:
            assert np.bincount(ids.codes[real, 0], minlength=1).max(initial=0) <= cap
        left = ids.num_items - len(set(seen[rows == user].tolist()))
        assert bool(real) == (left > 0), "whoever may get something gets something"


def test_a_narrow_beam_forgets_what_a_wide_one_finds() -> None:
    """The search is a real beam: a poor first code hides the best item from a width of 1."""
    ids = random_ids(60, SIZES, seed=0)
    scorer = TableScorer(SIZES, NUM_USERS, seed=3)
    trie = CodeTrie.from_ids(ids)
    exact = best_of(scorer.score_items(ids), 1)[0]
    assert beam_search(scorer, batch_of(NUM_USERS), trie, 60, 1)[0].tolist() == exact
    assert beam_search(scorer, batch_of(NUM_USERS), trie, 1, 1)[0].tolist() != exact


def test_a_user_who_has_seen_everything_gets_nothing() -> None:
    ids = random_ids(6, SIZES, seed=0)
    exclude = (torch.zeros(6, dtype=torch.int64), torch.arange(1, 7))
    scorer = TableScorer(SIZES, 2, seed=0)
    items, values = beam_search(scorer, batch_of(2), CodeTrie.from_ids(ids), 10, 8, exclude=exclude)
    assert items[0].tolist() == [0] * 8
    assert values[0].tolist() == [-float("inf")] * 8
    assert sorted(items[1].tolist()) == [0, 0, 1, 2, 3, 4, 5, 6]


def test_no_users_and_scores_that_are_no_numbers() -> None:
    ids = random_ids(6, SIZES, seed=0)
    trie = CodeTrie.from_ids(ids)
    items, values = beam_search(TableScorer(SIZES, 0, seed=0), batch_of(0), trie, 10, 4)
    assert (items.shape, values.shape) == ((0, 4), (0, 4))
    scorer = TableScorer(SIZES, 1, seed=0)
    barred = int(ids.codes[1, 0])
    scorer.tables[0][0, 0, barred] = -float("inf")
    items, values = beam_search(scorer, batch_of(1), trie, 10, 6)
    assert sorted(items[0].tolist()) == sorted(item if ids.codes[item, 0] != barred else 0 for item in range(1, 7))
    assert (items[0] > 0).tolist() == (values[0] > -float("inf")).tolist()
    scorer.tables[1][0, int(ids.codes[4, 0]), int(ids.codes[4, 1])] = float("nan")
    items, values = beam_search(scorer, batch_of(1), trie, 10, 6)
    assert not items.any(), "a model that is broken is not asked for what is left"
    assert values.isnan().all()


def test_the_cap_makes_room_for_other_prefixes() -> None:
    """All that is likely begins with one code; with a cap the rest of the list comes from elsewhere."""
    ids = random_ids(60, SIZES, seed=0)
    scorer = TableScorer(SIZES, 1, seed=0)
    scorer.tables[0][0, 0] = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    trie = CodeTrie.from_ids(ids)
    plain = beam_search(scorer, batch_of(1), trie, 8, 8)[0][0]
    assert ids.codes[plain, 0].tolist() == [0] * 8
    capped = beam_search(scorer, batch_of(1), trie, 8, 8, max_per_prefix=2)[0][0]
    assert sorted(ids.codes[capped, 0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert capped[0] == plain[0]


def test_settings_that_do_not_go_together() -> None:
    trie = CodeTrie.from_ids(random_ids(6, SIZES, seed=0))
    scorer = TableScorer(SIZES, 1, seed=0)
    with pytest.raises(ConfigError, match="A beam of width 4 finds at most 4 items, and k is 5; widen it"):
        beam_search(scorer, batch_of(1), trie, 4, 5)
    with pytest.raises(ConfigError, match=r"max_per_prefix \(0\) must be at least 1"):
        beam_search(scorer, batch_of(1), trie, 4, 4, max_per_prefix=0)
    with pytest.raises(ConfigError, match=r"codes of sizes \[4, 3\] and the catalogue has \[4, 3, 5\]"):
        beam_search(TableScorer((4, 3), 1, seed=0), batch_of(1), trie, 4, 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.integers(1, 4), st.integers(1, 12), st.sampled_from([0, 3]))
def test_with_two_levels_the_cap_passes_over_full_prefixes(
    num_items: int, seed: int, cap: int, k: int, num_values: int
) -> None:
    """Nothing is dropped before the last level, so the list is all items best first, without those of full prefixes."""
    sizes = (6, 5)
    ids = random_ids(num_items, sizes, seed)
    scorer = TableScorer(sizes, NUM_USERS, seed, num_values)
    expected = []
    for row in best_of(scorer.score_items(ids), num_items)[0]:
        taken = [0] * sizes[0]
        kept = []
        for item in row:
            taken[ids.codes[item, 0]] += 1
            if taken[ids.codes[item, 0]] <= cap:
                kept.append(item)
        expected.append((kept + [0] * k)[:k])
    found = beam_search(scorer, batch_of(NUM_USERS), CodeTrie.from_ids(ids), 30, k, max_per_prefix=cap)
    assert found[0].tolist() == expected
