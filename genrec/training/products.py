"""How exact products of fp32 matrices are (`engine.matmul_precision`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genrec.config import ExperimentConfig


@contextmanager
def matmul_precision(config: ExperimentConfig) -> Iterator[None]:
    """Computes fp32 matrix products as `engine.matmul_precision` says, and as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(config.engine.matmul_precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
