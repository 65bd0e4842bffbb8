"""Rotary positions (Su et al., 2021, arXiv 2104.09864): queries and keys are turned by angles that grow with the
position, so their products depend on the distance alone."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every angle, [num_tokens, 1, head_dim / 2]; made once a batch, shared by all layers."""

    cos: Tensor
    sin: Tensor


def rotation_of(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """The rotation of tokens at `positions` [num_tokens]: pair i turns by position / base^(2 i / head_dim).

    Angles are taken in fp64: in bf16, positions above 256 would be rounded. The result is fp32, or `dtype` if wider.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = (positions.double().unsqueeze(1) / base**exponents).unsqueeze(1)
    wide = torch.promote_types(dtype, torch.float32)
    return Rotation(angles.cos().to(wide), angles.sin().to(wide))


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """`heads` [num_tokens, num_heads, head_dim] turned; a pair is element i and element i + head_dim / 2."""
    first, second = heads.to(rotation.cos.dtype).chunk(2, dim=2)
    turned = torch.cat(
        [first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin], dim=2
    )
    return turned.to(heads.dtype)
