"""Lays out the data stream for the workers that there are. A module of its own, because importing it imports Ray."""

from typing import Any

import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig

from genrec.data.plan import PlanSpec
from genrec.data.ray_stream import lay_out


class StreamConfig(DataConfig):  # type: ignore[misc]  # Ray ships no types
    """Ray Train's data config. It is asked at every (re)start, once the size of the worker group is known."""

    def __init__(self, spec: PlanSpec, data_labels: dict[str, str] | None = None) -> None:
        """Tasks that read go to machines with `data_labels`, to any when it is None."""
        options = ExecutionOptions(preserve_order=True, label_selector=data_labels)
        super().__init__(execution_options=options, enable_shard_locality=False)
        self.spec = spec

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *more: Any, **named: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """The split of each worker. `datasets` are `remaining_chunks`, which know nothing of the workers."""
        laid_out = {name: lay_out(dataset, self.spec, world_size) for name, dataset in datasets.items()}
        splits: list[dict[str, ray.data.DataIterator]] = super().configure(laid_out, world_size, *more, **named)
        return splits
