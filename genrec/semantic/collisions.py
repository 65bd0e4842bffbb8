"""Items with the same codes get codes of their own: a further number (dedup), or the nearest free code (nearest).

Items that join later get numbers too, but no larger ones than there are (dedup_within), so that a trained model has an
output for them.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from genrec.errors import ConfigError
from genrec.semantic.tokenizers import ItemTokenizer

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Codes [num_items, num_levels] that no two items share, the levels' sizes, and how many items were moved."""

    codes: Codes
    sizes: tuple[int, ...]
    num_moved: int


def buckets_of(codes: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The bucket of each row, [num_rows], and how many rows each bucket has: rows of a bucket have the same codes."""
    _, bucket, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return bucket.reshape(-1).astype(np.int64), counts.astype(np.int64)


def number_within(bucket: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, ... for the rows of each bucket in their order, [num_rows]."""
    order = np.argsort(bucket, kind="stable")
    ordered = bucket[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(starts, len(ordered)))
    numbers = np.empty(len(bucket), dtype=np.int64)
    numbers[order] = np.arange(len(ordered)) - np.repeat(starts, sizes)
    return numbers


def dedup(codes: Codes, sizes: tuple[int, ...], taken: Codes | None = None) -> Resolved:
    """`codes` with one more level: a running number among the items of equal codes, in index order (TIGER).

    `taken` [num_taken, num_levels + 1] are codes that stay as they are; numbers go on after theirs. The level has as
    many codes as the fullest bucket has items.
    """
    held = np.empty((0, codes.shape[1] + 1), dtype=np.int32) if taken is None else taken
    everything = np.concatenate([held[:, :-1], codes])
    bucket, _ = buckets_of(everything)
    numbers = number_within(bucket)
    if taken is not None:
        # What comes after a bucket's largest number is free, whether or not the numbers before it have gaps.
        highest = np.full(int(bucket.max()) + 1, -1, dtype=np.int64)
        np.maximum.at(highest, bucket[: len(held)], held[:, -1])
        numbers[len(held) :] = number_within(bucket[len(held) :]) + highest[bucket[len(held) :]] + 1
    mine = numbers[len(held) :]
    size = max(int(mine.max(initial=0)), int(held[:, -1].max(initial=0))) + 1
    resolved = np.concatenate([codes, mine[:, None].astype(np.int32)], axis=1)
    return Resolved(resolved, (*sizes, size), int((mine > 0).sum()))


def dedup_within(codes: Codes, vectors: Floats, tokenizer: ItemTokenizer, taken: Codes) -> Resolved:
    """`codes` with a number each after those of `taken` [num_taken, num_levels + 1], whose last level does not grow.

    An item whose bucket has no number left takes the nearest tuple that has one, as in `nearest`. Only where all tuples
    are full does the level grow, as in `dedup`.
    """
    size = int(taken[:, -1].max()) + 1
    resolved = dedup(codes, tokenizer.sizes, taken)
    if resolved.sizes[-1] == size or len(taken) + len(codes) > math.prod(tokenizer.sizes) * size:
        return resolved
    everyone = np.concatenate([taken, resolved.codes])
    mine = everyone[len(taken) :]
    is_beyond = mine[:, -1] >= size
    mine[is_beyond] = -1
    full = set(map(tuple, everyone[everyone[:, -1] == size - 1, :-1].tolist()))
    for row in np.flatnonzero(is_beyond):
        found = _nearest_free(codes[row], vectors[row], tokenizer, full)
        number = int(everyone[(everyone[:, :-1] == found).all(axis=1), -1].max(initial=-1)) + 1
        mine[row] = (*found, number)
        if number == size - 1:
            full.add(found)
    return Resolved(mine.copy(), (*resolved.sizes[:-1], size), int(((mine[:, -1] > 0) | is_beyond).sum()))


def check_room(num_items: int, sizes: tuple[int, ...]) -> None:
    """Raises ConfigError when levels of these sizes have fewer tuples than there are items."""
    room = math.prod(sizes)
    if num_items > room:
        raise ConfigError(
            f"{num_items:,} items need codes of their own and semantic_ids.tokenizer has {room:,} tuples (levels "
            f"{list(sizes)}); use more codes, more levels, or semantic_ids.collisions: dedup."
        )


def nearest(codes: Codes, vectors: Floats, tokenizer: ItemTokenizer, taken: Codes | None = None) -> Resolved:
    """`codes` with all but one item of each bucket moved to the nearest free code of the last level.

    Of a bucket the item that its codes fit best stays. Where a prefix has no free code left, the nearest free tuple
    that a beam search finds is taken. `taken` codes stay. Raises ConfigError when there are fewer tuples than items.
    """
    held = [] if taken is None else [tuple(row) for row in taken.tolist()]
    check_room(len(codes) + len(held), tokenizer.sizes)
    used = set(held)
    bucket, counts = buckets_of(codes)
    doubtful = (counts[bucket] > 1) | np.array([tuple(row) in used for row in codes.tolist()], dtype=np.bool_)
    used.update(map(tuple, codes[~doubtful].tolist()))
    rows = np.flatnonzero(doubtful)
    errors = _errors(codes[rows], vectors[rows], tokenizer)
    resolved, num_moved = codes.copy(), 0
    for row in rows[np.argsort(errors, kind="stable")]:
        found = tuple(codes[row].tolist())
        if found in used:
            found = _nearest_free(codes[row], vectors[row], tokenizer, used)
            num_moved += 1
        used.add(found)
        resolved[row] = found
    return Resolved(resolved, tokenizer.sizes, num_moved)


def _errors(codes: Codes, vectors: Floats, tokenizer: ItemTokenizer) -> npt.NDArray[np.float32]:
    left = tokenizer.left_over(torch.from_numpy(vectors), torch.from_numpy(codes.astype(np.int64)))
    errors: npt.NDArray[np.float32] = left.square().sum(dim=1).numpy()
    return errors


def _nearest_free(
    codes: Codes, vector: Floats, tokenizer: ItemTokenizer, used: set[tuple[int, ...]]
) -> tuple[int, ...]:
    prefix = torch.from_numpy(codes[None, :-1].astype(np.int64))
    left = tokenizer.left_over(torch.from_numpy(vector[None]), prefix)
    with torch.no_grad():
        order = tokenizer.costs(left, len(tokenizer.sizes) - 1)[0].argsort(stable=True).tolist()
    start = tuple(codes[:-1].tolist())
    for code in order:
        if (*start, code) not in used:
            return (*start, code)
    width = 2 * len(order)
    while True:  # ends: a beam that is wide enough holds every tuple, and there are more tuples than items
        for found in map(tuple, tokenizer.candidates(torch.from_numpy(vector), width).tolist()):
            if found not in used:
                return found
        width *= 4
