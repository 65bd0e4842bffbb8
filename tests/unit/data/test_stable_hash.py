"""The hash of ids: the same everywhere, by text, and spread evenly."""

import numpy as np
import pyarrow as pa

from genrec.data.stable_hash import hash_ids


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
    numbers = [0, 7, -12, 2**62]
    assert hash_ids(pa.array(numbers)).tolist() == hash_ids(pa.array([str(n) for n in numbers])).tolist()


def test_consecutive_ids_spread_evenly() -> None:
    hashes = hash_ids(pa.array(np.arange(200_000)))
    assert len(np.unique(hashes)) == 200_000
    for num_shards in (2, 7, 64, 1_000):
        counts = np.bincount((hashes % np.uint64(num_shards)).astype(np.int64), minlength=num_shards)
        mean = 200_000 / num_shards
        assert abs(counts - mean).max() < 5 * mean**0.5  # five standard deviations of fair dice
