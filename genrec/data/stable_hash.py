"""A hash of original ids that is the same on every machine, version and run, and looks only at the id's text.

An integer 7 and a string "7" hash alike, so a log gives the same shards whether it came as Parquet or as CSV. All work
is on whole columns: the bytes of all ids at once, no loop over ids.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so its powers never reach 0 modulo 2^64
_CHUNK = 10_000  # integers are taken apart by four digits at a time

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]


def _powers(count: int) -> Hashes:
    powers: Hashes = np.cumprod(np.full(max(count, 1), _BASE), dtype=np.uint64)
    return powers


_DIGITS = np.arange(_CHUNK)[:, None] // np.array([1000, 100, 10, 1]) % 10  # [10000, 4], most significant first
_SHORT_LENGTHS: Integers = np.where(np.arange(_CHUNK) > 0, 4 - np.argmax(_DIGITS > 0, axis=1), 1)
_TERMS = (_DIGITS + ord("0") + 1).astype(np.uint64)
_PADDED_SUMS: Hashes = (_TERMS * _powers(4)).sum(axis=1, dtype=np.uint64)
_PLACES = np.arange(4) - (4 - _SHORT_LENGTHS[:, None])  # of a digit in the text without leading zeros
_SHORT_SUMS: Hashes = np.where(_PLACES >= 0, _TERMS * _powers(4)[_PLACES], np.uint64(0)).sum(axis=1, dtype=np.uint64)


def hash_ids(ids: pa.Array) -> Hashes:
    """64-bit hashes [num_ids] of integer or string ids without nulls.

    A polynomial over the UTF-8 bytes modulo 2^64, then the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    if len(ids) == 0:
        return np.zeros(0, dtype=np.uint64)
    if pa.types.is_int64(ids.type):
        numbers: Integers = ids.to_numpy()
        if numbers.min() >= 0:
            return _mix(_digit_sums(numbers)[0])
    text = ids.cast(pa.large_string())
    _, offset_buffer, byte_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(byte_buffer, dtype=np.uint8) if byte_buffer is not None else np.zeros(0, np.uint8)
    data = data[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    positions = np.arange(len(data)) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return _mix(sums[starts + lengths] - sums[starts])


def order_by_hash(hashes: Hashes) -> Integers:
    """Positions of `hashes` by rising hash; equal ones keep their order."""
    # numpy sorts values several times faster than positions, so the position takes the place of a hash's last bits.
    bits = np.uint64(max(len(hashes) - 1, 1).bit_length())
    mask = (np.uint64(1) << bits) - np.uint64(1)
    packed = np.sort((hashes & ~mask) | np.arange(len(hashes), dtype=np.uint64))
    order = (packed & mask).astype(np.int64)
    ordered = hashes[order]
    if (ordered[1:] < ordered[:-1]).any():  # two hashes differ in their last bits only
        return np.argsort(hashes, kind="stable")
    return order


def unify(hashes: Hashes, ids: pa.Array) -> tuple[Integers, Integers]:
    """Distinct ids by rising hash, equal hashes by rising id: `first` [num_distinct] and `codes` [num_ids].

    `ids[first[k]]` is distinct id k, and `codes[n]` the k of `ids[n]`. Ids of equal hash are compared, so different ids
    never become one.
    """
    order = order_by_hash(hashes)
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = hashes[order[1:]] != hashes[order[:-1]]
    repeats = np.flatnonzero(~is_new)
    if _differ(ids, order[repeats], order[repeats - 1]).any():
        keys = [("hash", "ascending"), ("id", "ascending")]
        order = pc.sort_indices(pa.table({"hash": hashes, "id": ids}), sort_keys=keys).to_numpy().astype(np.int64)
        is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]) | _differ(ids, order[1:], order[:-1])
    codes = np.empty(len(order), dtype=np.int64)
    codes[order] = np.cumsum(is_new) - 1
    return order[is_new], codes


def _differ(ids: pa.Array, left: Integers, right: Integers) -> npt.NDArray[np.bool_]:
    differ: npt.NDArray[np.bool_] = pc.not_equal(ids.take(pa.array(left)), ids.take(pa.array(right))).to_numpy(
        zero_copy_only=False
    )
    return differ


def _digit_sums(numbers: Integers) -> tuple[Hashes, Integers]:
    """The polynomial over the decimal digits of numbers >= 0, without printing them, and how many digits they have."""
    if numbers.max() < _CHUNK:
        return _SHORT_SUMS[numbers], _SHORT_LENGTHS[numbers]
    head, tail = np.divmod(numbers, _CHUNK)
    sums, lengths = _digit_sums(head)
    has_head = head > 0
    sums = np.where(has_head, sums + _powers(20)[lengths - 1] * _PADDED_SUMS[tail], _SHORT_SUMS[tail])
    return sums, np.where(has_head, lengths + 4, _SHORT_LENGTHS[tail])


def _mix(value: Hashes) -> Hashes:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
