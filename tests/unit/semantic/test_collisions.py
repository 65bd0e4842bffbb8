"""Every item ends up with codes of its own, near to its first ones, and codes that are taken stay."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError
from genrec.semantic.collisions import dedup, dedup_within, nearest
from genrec.semantic.tokenizers import ItemTokenizer

CODES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40)


def line_tokenizer(*sizes: int) -> ItemTokenizer:
    """Codes on a line: level 0 at 0, 10, 20, ..., level 1 at 0, 1, 2, ..."""
    tokenizer = ItemTokenizer([1], sizes).requires_grad_(False)
    for level, (book, scale) in enumerate(zip(tokenizer.books, (10.0, 1.0), strict=False)):
        book.copy_(torch.arange(sizes[level], dtype=torch.float32)[:, None] * scale)
    return tokenizer


def codes_of(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


def test_dedup_numbers_the_items_of_a_bucket() -> None:
    resolved = dedup(codes_of([(1, 1), (0, 1), (1, 1), (1, 1)]), (3, 2))
    assert resolved.codes[:, -1].tolist() == [0, 0, 1, 2]
    assert resolved.sizes == (3, 2, 3)
    assert resolved.num_moved == 2


def test_dedup_without_collisions_has_a_level_of_one() -> None:
    assert dedup(codes_of([(1, 1), (0, 1)]), (3, 2)).sizes == (3, 2, 1)


@settings(max_examples=50, deadline=None)
@given(CODES, CODES)
def test_dedup_after_others_is_dedup_of_all(first: list[tuple[int, int]], then: list[tuple[int, int]]) -> None:
    taken = dedup(codes_of(first), (3, 2)).codes
    added = dedup(codes_of(then), (3, 2), taken)
    everything = dedup(codes_of(first + then), (3, 2))
    assert np.array_equal(np.concatenate([taken, added.codes]), everything.codes)
    assert added.sizes == everything.sizes


def test_new_items_get_no_larger_number_than_there_is() -> None:
    tokenizer = line_tokenizer(2, 3)
    taken = codes_of([(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 0, 0)])
    codes, vectors = codes_of([(0, 1), (0, 1), (0, 1), (1, 0)]), np.array([[1.4], [0.9], [1.2], [10]], dtype=np.float32)
    resolved = dedup_within(codes, vectors, tokenizer, taken)
    # (0, 1) is full: 1.4 goes to (0, 2) and fills it, 0.9 to (0, 0), 1.2 to (0, 0) too, and 10 has a number left.
    assert resolved.codes.tolist() == [[0, 2, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert resolved.sizes == (2, 3, 2)
    assert resolved.num_moved == 4


def test_the_level_of_numbers_grows_when_every_tuple_is_full() -> None:
    tokenizer = line_tokenizer(2, 1)
    taken = codes_of([(0, 0, 0), (1, 0, 0)])
    resolved = dedup_within(codes_of([(0, 0)]), np.zeros((1, 1), dtype=np.float32), tokenizer, taken)
    assert resolved.codes.tolist() == [[0, 0, 1]]
    assert resolved.sizes == (2, 1, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 29, width=32), min_size=2, max_size=20), st.integers(1, 6))
def test_numbers_stay_below_the_size_while_there_is_room(values: list[float], num_first: int) -> None:
    tokenizer = line_tokenizer(3, 4)
    vectors = np.array(values, dtype=np.float32)[:, None]
    codes = tokenizer.encode(torch.from_numpy(vectors)).numpy().astype(np.int32)
    first = dedup(codes[:num_first], tokenizer.sizes)
    rest = dedup_within(codes[num_first:], vectors[num_first:], tokenizer, first.codes)
    everyone = np.concatenate([first.codes, rest.codes])
    assert len(np.unique(everyone, axis=0)) == len(values)
    assert (everyone >= 0).all() and (everyone < np.array(rest.sizes)).all()
    assert rest.sizes == first.sizes or len(values) > 12 * first.sizes[-1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 29, width=32), min_size=1, max_size=12), st.integers(0, 6))
def test_nearest_gives_everyone_a_tuple(values: list[float], num_first: int) -> None:
    tokenizer = line_tokenizer(3, 4)
    vectors = np.array(values, dtype=np.float32)[:, None]
    codes = tokenizer.encode(torch.from_numpy(vectors)).numpy().astype(np.int32)
    first = nearest(codes[:num_first], vectors[:num_first], tokenizer).codes
    rest = nearest(codes[num_first:], vectors[num_first:], tokenizer, first).codes
    everyone = np.concatenate([first, rest])
    assert len(np.unique(everyone, axis=0)) == len(values)
    assert (everyone >= 0).all() and (everyone < np.array([3, 4])).all()


def test_nearest_moves_the_worst_to_the_nearest_free_code_and_then_to_another_prefix() -> None:
    tokenizer = line_tokenizer(2, 3)
    vectors = np.array([[1.4], [1.0], [1.2], [1.6]], dtype=np.float32)
    codes = codes_of([(0, 1), (0, 1), (0, 1), (0, 2)])
    resolved = nearest(codes, vectors, tokenizer)
    # 1.0 fits (0, 1) best; 1.2 and 1.4 lose it, (0, 2) is taken by 1.6: (0, 0) is left, and then the other prefix.
    assert resolved.codes.tolist() == [[1, 0], [0, 1], [0, 0], [0, 2]]
    assert resolved.num_moved == 2


def test_nearest_needs_as_many_tuples_as_items() -> None:
    with pytest.raises(ConfigError, match=r"3 items need codes of their own and .* has 2 tuples"):
        nearest(codes_of([(0, 0)] * 3), np.zeros((3, 1), dtype=np.float32), line_tokenizer(2, 1))
