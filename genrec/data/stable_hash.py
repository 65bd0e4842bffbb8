"""A hash of original ids that is the same on every machine, version and run, and looks only at the id's text.

An integer 7 and a string "7" hash alike, so a log gives the same shards whether it came as Parquet or as CSV. All work
is on whole columns: the bytes of all ids at once, no loop over ids.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so its powers never reach 0 modulo 2^64


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """64-bit hashes [num_ids] of integer or string ids without nulls.

    A polynomial over the UTF-8 bytes modulo 2^64, then the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    text = ids.cast(pa.large_string())
    if len(text) == 0:
        return np.zeros(0, dtype=np.uint64)
    _, offset_buffer, byte_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(byte_buffer, dtype=np.uint8) if byte_buffer is not None else np.zeros(0, np.uint8)
    data = data[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    positions = np.arange(len(data)) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return _mix(sums[starts + lengths] - sums[starts])


def _powers(count: int) -> npt.NDArray[np.uint64]:
    powers: npt.NDArray[np.uint64] = np.cumprod(np.full(max(count, 1), _BASE), dtype=np.uint64)
    return powers


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
