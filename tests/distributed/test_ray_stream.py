"""Ray Data hands the workers the same micro-batches, byte for byte and in the same order, as the in-process reader."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from genrec.data.batch import Batch
from genrec.data.plan import Plan, make_plan
from genrec.data.stream import Place, local_tables, worker_batches

PARTS = 4


def fingerprints(batches: Iterator[tuple[Place, Batch]]) -> list[tuple[Any, ...]]:
    rows = []
    for place, batch in batches:
        tensors = [getattr(batch, f.name) for f in fields(batch) if torch.is_tensor(getattr(batch, f.name))]
        assert len(tensors) == 9
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
        rows.append((*place, *batch.micro_batch_id, batch.step_targets, digest))
    return rows


def read_through_ray(plan: Plan, start: int, end: int, workers: int) -> list[list[tuple[Any, ...]]]:
    """What each of `workers` consumers gets from `streaming_split`, each in a process of its own."""
    import ray
    from ray import cloudpickle

    from genrec.data.ray_session import ensure_ray
    from genrec.data.ray_stream import lay_out, remaining_chunks

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ensure_ray()
    dataset = lay_out(remaining_chunks(plan, start_step=start, end_step=end), plan.spec, workers)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False

    def consume(split: Any, rank: int) -> list[tuple[Any, ...]]:
        from genrec.data.ray_stream import ray_tables

        span = {"start_step": start, "end_step": end, "rank": rank, "workers": workers, "parts": PARTS}
        return fingerprints(worker_batches(ray_tables(split), **span))

    task = ray.remote(num_cpus=0.25)(consume)
    splits = dataset.streaming_split(workers, equal=True)
    return ray.get([task.remote(split, rank) for rank, split in enumerate(splits)], timeout=200)


@pytest.fixture(scope="module")
def plan(tmp_path_factory, write_prepared, make_config) -> Plan:
    generator = np.random.default_rng(2)
    sequences = [generator.integers(1, 40, generator.integers(2, 30)).tolist() for _ in range(900)]
    folder = write_prepared(tmp_path_factory.mktemp("stream") / "set", sequences, rows_per_group=20, num_items=40)
    batch = f"batch={{tokens_per_step: 64, micro_batches_per_step: {PARTS}, chunk_tokens: 2000}}"
    loss = "loss={name: sampled-softmax, negatives: in-batch, num_negatives: 16}"
    plan = make_plan(make_config(folder, batch, loss))
    plan.spec = replace(plan.spec, rule=replace(plan.spec.rule, steps_per_block=3))  # several blocks a chunk
    return plan


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 7), (4, 0)])
def test_ray_and_this_process_read_the_same(plan: Plan, workers: int, start: int) -> None:
    assert len(plan.epoch(0)) > 2
    end = plan.num_steps(2, None) - 1
    through_ray = read_through_ray(plan, start, end, workers)
    for rank, found in enumerate(through_ray):
        span = {"start_step": start, "end_step": end, "rank": rank, "workers": workers}
        expected = fingerprints(worker_batches(local_tables(plan, **span), **span, parts=PARTS))
        assert found == expected
    assert sum(len(found) for found in through_ray) == (end - start) * PARTS
