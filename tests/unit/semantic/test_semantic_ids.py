"""The map of a catalogue: what it refuses, and that it comes back as it was saved."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec.semantic.ids import CODES_FILE, MAP_FILE, SemanticIds, load_semantic_ids


def ids_of(rows: list[tuple[int, ...]], sizes: tuple[int, ...]) -> SemanticIds:
    codes = np.array([[-1] * len(sizes), *rows], dtype=np.int32)
    return SemanticIds(codes, sizes, "the items", {"tokenizer": "by hand"})


@settings(max_examples=30, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1))
def test_a_map_comes_back_as_it_was_saved(tmp_path_factory, rows) -> None:
    folder = tmp_path_factory.mktemp("map")
    ids = ids_of(sorted(rows), (4, 5))
    ids.save(folder)
    again = load_semantic_ids(folder)
    assert np.array_equal(again.codes, ids.codes)
    assert (again.sizes, again.items_digest, again.origin, again.digest) == (
        ids.sizes,
        ids.items_digest,
        ids.origin,
        ids.digest,
    )
    assert (again.num_items, again.num_levels) == (len(rows), 2)


def test_items_must_differ_and_codes_must_fit() -> None:
    with pytest.raises(DataError, match="2 items share their codes with another, item index 1 for one"):
        ids_of([(0, 1), (0, 1)], (4, 5))
    with pytest.raises(DataError, match="Item index 2 has code 5 on level 1, which holds 0 to 4"):
        ids_of([(0, 1), (0, 5)], (4, 5))
    with pytest.raises(DataError, match="one column of codes for each of the 3 levels"):
        SemanticIds(np.array([[-1, -1], [0, 1]], dtype=np.int32), (4, 5, 6), "the items")


def test_a_damaged_or_missing_map_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no map of semantic ids"):
        load_semantic_ids(tmp_path)
    ids_of([(0, 1), (1, 2)], (4, 5)).save(tmp_path)
    np.save(tmp_path / CODES_FILE, np.array([[-1, -1], [0, 2], [1, 2]], dtype=np.int32))
    with pytest.raises(DataError, match="are not those that were saved there"):
        load_semantic_ids(tmp_path)
    (tmp_path / CODES_FILE).write_bytes(b"")
    with pytest.raises(DataError, match="holds no map of semantic ids that can be read"):
        load_semantic_ids(tmp_path)
    ids_of([(0, 1), (1, 2)], (4, 5)).save(tmp_path)
    told = json.loads((tmp_path / MAP_FILE).read_text())
    (tmp_path / MAP_FILE).write_text(json.dumps(told | {"format": 9}))
    with pytest.raises(DataError, match="format 9"):
        load_semantic_ids(tmp_path)


def test_the_digest_tells_maps_apart() -> None:
    digests = {
        ids_of([(0, 1), (1, 2)], (4, 5)).digest,
        ids_of([(0, 1), (1, 3)], (4, 5)).digest,
        ids_of([(0, 1), (1, 2)], (4, 6)).digest,
    }
    assert len(digests) == 3
