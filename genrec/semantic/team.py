"""The workers of one `genrec tokenize`: this process alone, or those that torchrun has started."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from genrec.semantic.tokenizers_rows import ALONE, Team

TIMEOUT = timedelta(hours=6)  # the first worker may be reading vectors for that long


@contextmanager
def open_team(environment: Mapping[str, str]) -> Iterator[Team]:
    """The team that RANK and WORLD_SIZE tell of; sums go through gloo. Without them, this process alone."""
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Team(int(environment["RANK"]), count, _sum)
    finally:
        dist.destroy_process_group()


def _sum(values: Tensor) -> Tensor:
    total = values.cpu()
    dist.all_reduce(total)
    return total.to(values.device)
