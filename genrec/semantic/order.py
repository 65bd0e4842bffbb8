"""Scores and whole numbers in one key each, so that the best are found with ties decided, without a stable sort."""

import torch
from torch import Tensor

NOTHING = -(2**63)
"""The key of what must never be chosen."""
_LOW = 0xFFFFFFFF
_MINUS_INFINITY = -2_139_095_041  # the turned bits of -inf


def order_keys(scores: Tensor, numbers: Tensor) -> Tensor:
    """A whole number for each of `scores` float32 that orders by score, and by falling number where scores are equal.

    `numbers`, of the scores' shape, are 0 .. 2^31 - 1, or -1 where the score is -inf; no score may be NaN. The bits of
    a float, with those of negative ones turned round, order as the floats do; adding 0 makes -0 and 0 one.
    """
    keys = _turned((scores + 0.0).view(torch.int32)).long()
    keys <<= 32
    keys -= numbers
    return keys


def numbers_of(keys: Tensor) -> Tensor:
    """The numbers that keys were made with."""
    return -keys & _LOW


def scores_of(keys: Tensor) -> Tensor:
    """The scores that keys were made with, float32; of no meaning for NOTHING."""
    return _turned(_upper(keys).to(torch.int32)).view(torch.float32)


def is_something(keys: Tensor) -> Tensor:
    """Whether keys stand for a score above -inf."""
    return _upper(keys) > _MINUS_INFINITY


def _upper(keys: Tensor) -> Tensor:
    return (keys + (_LOW - 1)) >> 32


def _turned(bits: Tensor) -> Tensor:
    turned = bits >> 31
    turned &= 0x7FFFFFFF
    turned ^= bits
    return turned
