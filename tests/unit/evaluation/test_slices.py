"""Slices: who is in which, and metrics of each as if its users were all."""

from pathlib import Path

import numpy as np
import prepared_sets
import pyarrow.parquet as pq
import pytest
import torch
from together import together

from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE
from genrec.errors import DataError
from genrec.evaluation.metrics import metrics_from_ranks
from genrec.evaluation.slices import ItemFacts, SliceSums, popularity_slices, read_item_facts
from genrec.evaluation.workers import ALONE, Workers

CPU = torch.device("cpu")
#                           item 1   2   3   4  5  6  7  8
TRAIN_COUNTS = np.array([0, 40, 20, 20, 10, 4, 4, 2, 0])
FACTS = ItemFacts(TRAIN_COUNTS, np.array([0, 1, 1, 2, 2, 0, 1, 1, 2], dtype=np.uint8), ("no type", "track", "episode"))


def some_users(num_users: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(1, 30, num_users), rng.integers(1, 9, num_users), rng.integers(1, 40, num_users)


def summed(users: tuple[np.ndarray, ...], workers: Workers = ALONE, facts: ItemFacts = FACTS) -> dict:
    sums = SliceSums(facts, 10)
    for start in range(0, len(users[0]), 64):
        sums.add(*(column[start : start + 64] for column in users))
    return sums.results((5, 10), workers, CPU)


def test_popularity_is_cut_by_fifths_of_all_events_and_never_between_equals() -> None:
    slices, names = popularity_slices(TRAIN_COUNTS)
    # Events of more popular items: none of 100, 40, 40, 80, 90, 90, 98.
    assert slices[1:].tolist() == [0, 2, 2, 4, 4, 4, 4, 5]
    assert names == ["40", "none", "20", "none", "2-10", "0"]


def test_many_items_fill_their_fifths_evenly() -> None:
    counts = np.concatenate([[0], (3_000 * np.arange(1, 5_001) ** -0.7).astype(np.int64)])
    slices, _ = popularity_slices(counts)
    shares = np.bincount(slices, counts, minlength=6)[:5] / counts.sum()
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(slices[np.argsort(-counts[1:], kind="stable") + 1]) >= 0).all()
    assert shares == pytest.approx(0.2, abs=0.03)


def test_each_slice_has_the_metrics_of_its_users() -> None:
    ranks, targets, lengths = users = some_users()
    found = summed(users)
    members = {
        ("history_length", "8-15"): (lengths >= 8) & (lengths <= 15),
        ("history_length", "1"): lengths == 1,
        ("popularity", "20"): np.isin(targets, [2, 3]),
        ("popularity", "0"): targets == 8,
        ("item_type", "track"): np.isin(targets, [1, 2, 6, 7]),
        ("item_type", "no type"): targets == 5,
        ("cold", "not in training"): targets == 8,
    }
    for (kind, name), chosen in members.items():
        part = found[kind][name]
        assert part["num_users"] == chosen.sum() > 0
        assert part["metrics"] == metrics_from_ranks(torch.from_numpy(ranks[chosen]), (5, 10))
        hits = ranks[chosen] <= 10
        assert part["standard_errors"]["hr@10"] == pytest.approx(hits.std() / np.sqrt(chosen.sum()))
    for kind in found.values():
        assert sum(part["num_users"] for part in kind.values()) == len(ranks)


def test_cold_targets_are_parted_by_whether_they_have_a_vector() -> None:
    has_vector = np.array([False, True, True, False, True, True, False, True, False])
    counts = np.array([0, 40, 20, 20, 0, 4, 0, 0, 0])
    facts = ItemFacts(counts, np.zeros(9, dtype=np.uint8), ("no type",), has_vector)
    ranks, targets, _ = users = some_users()
    found = summed(users, facts=facts)["cold"]
    members = {
        "in training": np.isin(targets, [1, 2, 3, 5]),
        "not in training, with a vector": np.isin(targets, [4, 7]),
        "not in training, without a vector": np.isin(targets, [6, 8]),
    }
    assert list(found) == list(members)
    for name, chosen in members.items():
        assert found[name]["num_users"] == chosen.sum() > 0
        assert found[name]["metrics"] == metrics_from_ranks(torch.from_numpy(ranks[chosen]), (5, 10))


def test_workers_together_give_the_same() -> None:
    users = some_users()
    parts = [tuple(column[first:last] for column in users) for first, last in ((0, 150), (150, 400))]
    shared = together(lambda rank, all_reduce: summed(parts[rank], Workers(rank, 2, all_reduce)), workers=2)
    assert shared == [summed(users)] * 2


def test_a_kind_that_tells_nobody_apart_is_left_out() -> None:
    plain = ItemFacts(np.array([0, 5, 5]), np.zeros(3, dtype=np.uint8), ("no type",))
    found = summed((np.array([1, 2]), np.array([1, 2]), np.array([2, 9])), facts=plain)
    assert list(found) == ["history_length"]


def test_facts_come_from_the_item_table(tmp_path: Path, write_prepared) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3], [1, 1, 2, 3]], num_items=3)
    table = pq.read_table(folder / ITEMS_FILE)
    types = table.schema.get_field_index("type")
    pq.write_table(table.set_column(types, "type", [["b", None, "a"]]).take([2, 0, 1]), folder / ITEMS_FILE)
    facts = read_item_facts(folder)
    assert facts.train_counts.tolist() == [0, 3, 0, 0]
    assert [facts.type_names[code] for code in facts.types[1:]] == ["b", "no type", "a"]
    assert facts.has_vector is None
    prepared_sets.give_vectors(folder, np.array([[0, 0], [0, 1], [0, 0], [-1, 0]]))
    assert read_item_facts(folder).has_vector.tolist() == [False, True, False, True]
    (folder / ITEM_VECTORS_FILE).write_bytes(b"no vectors")
    with pytest.raises(DataError, match=r"item_vectors.npy cannot be read"):
        read_item_facts(folder)
    (folder / ITEMS_FILE).write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_item_facts(folder)
