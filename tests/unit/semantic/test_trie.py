"""The trie accepts the tuples of its catalogue and no others, whole and restricted, with tables and without."""

import itertools

import numpy as np
import pytest
import torch
from code_catalogue import random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError
from genrec.semantic.ids import SemanticIds
from genrec.semantic.trie import CodeTrie

SIZES = (3, 4, 2)
ALL = list(itertools.product(*(range(size) for size in SIZES)))

catalogues = st.lists(st.sampled_from(ALL), min_size=1, unique=True)


def ids_of(rows: list[tuple[int, ...]], sizes: tuple[int, ...] = SIZES) -> SemanticIds:
    return SemanticIds(np.array([[-1] * len(sizes), *rows], dtype=np.int32), sizes, "the items")


@settings(max_examples=40, deadline=None)
@given(catalogues, st.data(), st.sampled_from([0, 5, 2**20]))
def test_it_accepts_exactly_the_catalogue(rows, data, dense_entries) -> None:
    ids = ids_of(rows)
    trie = CodeTrie.from_ids(ids, dense_entries=dense_entries)
    item_of = {tuple(codes): item for item, codes in enumerate(ids.codes.tolist())}
    assert trie.find(torch.tensor(ALL)).tolist() == [item_of.get(codes, 0) for codes in ALL]
    assert (trie.sizes, trie.num_leaves) == (SIZES, len(rows))
    allowed = set(data.draw(st.lists(st.integers(1, len(rows)), min_size=1)))
    mask = torch.tensor([item in allowed for item in range(len(rows) + 1)])
    part = trie.restricted_to(mask)
    expected = [item if (item := item_of.get(codes, 0)) in allowed else 0 for codes in ALL]
    assert part.find(torch.tensor(ALL)).tolist() == expected
    fresh = CodeTrie.from_ids(ids_of([rows[item - 1] for item in sorted(allowed)]), dense_entries=dense_entries)
    assert all(
        torch.equal(a.starts, b.starts) and torch.equal(a.codes, b.codes)
        for a, b in zip(part.levels, fresh.levels, strict=True)
    )


@settings(max_examples=20, deadline=None)
@given(catalogues, st.sampled_from([0, 2**20]))
def test_every_node_knows_its_children_and_its_parent(rows, dense_entries) -> None:
    trie = CodeTrie.from_ids(ids_of(rows), dense_entries=dense_entries)
    for depth, level in enumerate(trie.levels):
        prefixes = sorted({codes[:depth] for codes in rows})
        every = torch.arange(len(prefixes)).unsqueeze(0)
        scores = level.child_scores(torch.arange(level.size).float().expand(1, len(prefixes), -1), every)
        children = level.children(every)
        for number, prefix in enumerate(prefixes):
            columns = (scores[0, number] > -float("inf")).nonzero().squeeze(1)
            expected = sorted({codes[depth] for codes in rows if codes[:depth] == prefix})
            assert scores[0, number, columns].tolist() == expected
            nodes = level.child(torch.full_like(columns, number), columns)
            assert children[0, number, columns].tolist() == nodes.tolist()
            assert level.codes[nodes].tolist() == expected
            parents = level.parents(nodes)
            assert parents.tolist() == [number] * len(nodes)
            assert level.columns(nodes, parents).tolist() == columns.tolist()


def test_sizes_that_do_not_fit_into_one_number() -> None:
    sizes = (2**20, 2**20, 2**20, 2**20)
    rows = [(5, 0, 2**20 - 1, 3), (5, 0, 1, 3), (0, 7, 7, 7)]
    assert CodeTrie.from_ids(ids_of(rows, sizes)).find(torch.tensor(rows)).tolist() == [1, 2, 3]


def test_tables_only_where_they_pay() -> None:
    trie = CodeTrie.from_ids(random_ids(20_000, (32, 32, 32), seed=0))
    assert [level.table is not None for level in trie.levels] == [True, True, True]
    trie = CodeTrie.from_ids(random_ids(20_000, (32, 32, 32), seed=0), dense_entries=2_000)
    assert [level.table is not None for level in trie.levels] == [True, True, False]
    thin = CodeTrie.from_ids(random_ids(1_000, (32, 32, 32), seed=0))
    assert [level.table is not None for level in thin.levels] == [True, True, False]
    arrays = [thin.items, thin.leaf_of, *(a for level in thin.levels for a in (level.starts, level.codes))]
    tables = [table for level in thin.levels for table in (level.table, level.mask) if table is not None]
    assert thin.nbytes == 4 * sum(array.numel() for array in arrays + tables)
    assert thin.to("meta").nbytes == thin.nbytes


def test_a_filter_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match=r"None of the 3 items may be recommended .* allow other item types\."):
        CodeTrie.from_ids(random_ids(3, SIZES, seed=0)).restricted_to(torch.zeros(4, dtype=torch.bool))
