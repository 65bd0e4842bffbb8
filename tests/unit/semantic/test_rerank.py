"""Candidates in the order of dense scores: what comes back is what scoring them one by one gives."""

import torch
from code_catalogue import best_of
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.semantic.order import NOTHING, is_something, numbers_of, order_keys, scores_of
from genrec.semantic.rerank import rerank

NUM_ITEMS, NUM_USERS = 30, 3

lists = st.lists(st.integers(1, NUM_ITEMS), max_size=12, unique=True)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(lists, lists, lists), lists, st.lists(st.tuples(st.integers(0, 2), st.integers(1, NUM_ITEMS))), st.data()
)
def test_it_is_the_best_of_candidates_and_cold_items(
    generated: tuple[list[int], ...], cold: list[int], excluded: list[tuple[int, int]], data: st.DataObject
) -> None:
    # Whole numbers: products are exact, and there are ties.
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    table = torch.randint(-2, 3, (NUM_ITEMS + 1, 4), generator=generator).float()
    hidden = torch.randint(-2, 3, (NUM_USERS, 4), generator=generator).float()
    k = data.draw(st.integers(1, 15))
    candidates = torch.tensor([row + [0] * (12 - len(row)) for row in generated])
    exclude = torch.tensor(excluded, dtype=torch.int64).view(-1, 2).unbind(1)
    items, scores = rerank(
        hidden, candidates, lambda some: table[some], k, cold_items=torch.tensor(cold), exclude=(exclude[0], exclude[1])
    )
    allowed = torch.zeros(NUM_USERS, NUM_ITEMS + 1, dtype=torch.bool)
    for user, row in enumerate(generated):
        allowed[user, row + cold] = True
    allowed[exclude] = False
    every = (hidden @ table.T).masked_fill(~allowed, -float("inf"))
    assert (items.tolist(), scores.tolist()) == best_of(every, k)


def test_the_order_of_the_beam_does_not_count() -> None:
    table = torch.tensor([[0.0], [1.0], [3.0], [2.0], [9.0]])
    items, scores = rerank(torch.ones(1, 1), torch.tensor([[1, 2, 3, 0]]), lambda some: table[some], 3)
    assert (items.tolist(), scores.tolist()) == ([[2, 3, 1]], [[3.0, 2.0, 1.0]])


@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**31 - 1)), min_size=1))
def test_keys_order_by_score_and_then_by_number(pairs: list[tuple[float, int]]) -> None:
    scores, numbers = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    keys = order_keys(scores, numbers)
    assert torch.equal(scores_of(keys), scores)
    assert torch.equal(numbers_of(keys), numbers)
    assert torch.equal(is_something(keys), scores > -float("inf"))
    assert sorted(pairs, key=lambda p: (-p[0], p[1])) == [pairs[i] for i in keys.argsort(descending=True, stable=True)]
    assert bool((keys > NOTHING).all())
    assert not is_something(torch.tensor([NOTHING])).any()
