"""Scores and whole numbers in one key each, so that the best are found with ties decided, without a stable sort."""

import torch
from torch import Tensor

NOTHING = -(2**63)
"""The key of what must never be chosen."""
_LOW = 0xFFFFFFFF
_MINUS_INFINITY = -2_139_095_041  # the upper half of the key of a score of -inf


def order_keys(scores: Tensor, numbers: Tensor) -> Tensor:
    """A whole number for each of `scores` float32 that orders by score, and by falling number where scores are equal.

    `numbers`, of a shape that goes with the scores', are 0 .. 2^32 - 1. The bits of a float, with those of negative
    ones turned round, order as the floats do; adding 0 makes -0 and 0 one.
    """
    bits = (scores + 0.0).view(torch.int32)
    return (_turned(bits).long() << 32) | (_LOW - numbers)


def numbers_of(keys: Tensor) -> Tensor:
    """The numbers that keys were made with."""
    return _LOW - (keys & _LOW)


def scores_of(keys: Tensor) -> Tensor:
    """The scores that keys were made with, float32; NaN for NOTHING."""
    return _turned((keys >> 32).to(torch.int32)).view(torch.float32)


def is_something(keys: Tensor) -> Tensor:
    """Whether keys stand for a score above -inf."""
    return (keys >> 32) > _MINUS_INFINITY


def _turned(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
