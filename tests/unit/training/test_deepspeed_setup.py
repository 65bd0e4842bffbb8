"""Process groups that DeepSpeed makes for itself wait as long as the run's own."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from genrec.training.deepspeed_setup import limit_waits


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=77))
    yield
    dist.destroy_process_group()


def waits_s(group: dist.ProcessGroup) -> float:
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


@pytest.mark.usefixtures("alone")
def test_groups_of_an_engine_get_the_runs_time_out() -> None:
    group = dist.new_group([0])
    assert waits_s(group) != 77  # torch's own, whatever the world's is
    limit_waits(SimpleNamespace(data_parallel_group=group, seq_data_parallel_group=None), 77)
    assert waits_s(group) == 77
