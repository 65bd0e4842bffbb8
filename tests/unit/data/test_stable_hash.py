"""The hash of ids: the same everywhere, by text, and spread evenly."""

import numpy as np
import pyarrow as pa
import pytest

from genrec.data.stable_hash import hash_ids, order_by_hash, unify


def literal_hash(text: str) -> int:
    """The documented formula, one byte at a time."""
    mask, value = 2**64 - 1, 0
    for position, byte in enumerate(text.encode()):
        value = (value + (byte + 1) * pow(0x9E3779B97F4A7C15, position + 1, 2**64)) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_formula() -> None:
    texts = ["", "a", "user-17", "ab", "ba", "Jos\u00e9", "x" * 300]
    assert hash_ids(pa.array(texts)).tolist() == [literal_hash(text) for text in texts]
    assert hash_ids(pa.array(["zz", *texts, "q"]).slice(1, len(texts))).tolist() == hash_ids(pa.array(texts)).tolist()
    assert len(hash_ids(pa.array([], pa.string()))) == 0


def test_integers_hash_as_their_text() -> None:
    edges = [10**n + shift for n in range(19) for shift in (-1, 0, 1)] + [2**62, 2**63 - 1, 120_003, 10_000_000_450]
    for numbers in (edges, [0, 7, -12, 2**62], list(range(12_000))):
        assert hash_ids(pa.array(numbers)).tolist() == [literal_hash(str(n)) for n in numbers]


def test_consecutive_ids_spread_evenly() -> None:
    hashes = hash_ids(pa.array(np.arange(200_000)))
    assert len(np.unique(hashes)) == 200_000
    for num_shards in (2, 7, 64, 1_000):
        counts = np.bincount((hashes % np.uint64(num_shards)).astype(np.int64), minlength=num_shards)
        mean = 200_000 / num_shards
        assert abs(counts - mean).max() < 5 * mean**0.5  # five standard deviations of fair dice


def test_order_by_hash_is_exact_and_stable() -> None:
    rng = np.random.default_rng(1)
    # Numbers that differ in their last bits only, where the position stands while numpy sorts.
    for hashes in (rng.integers(0, 50, 1_000), rng.integers(2**62, 2**63, 1_000), np.zeros(1, np.int64)):
        expected = np.argsort(hashes, kind="stable")
        assert np.array_equal(order_by_hash(hashes.astype(np.uint64)), expected)


@pytest.mark.parametrize("num_hashes", [2**64, 7])
def test_unify_tells_ids_of_equal_hash_apart(num_hashes: int) -> None:
    rng = np.random.default_rng(2)
    ids = pa.array([f"id-{n}" for n in rng.integers(0, 300, 2_000)])
    hashes = np.array([value % num_hashes for value in hash_ids(ids).tolist()], dtype=np.uint64)
    first, codes = unify(hashes, ids)
    distinct = ids.take(pa.array(first))
    assert distinct.take(pa.array(codes)).equals(ids)
    keys = list(zip(hashes[first].tolist(), distinct.to_pylist(), strict=True))
    assert keys == sorted(set(keys)) and len(keys) == len(set(ids.to_pylist()))
