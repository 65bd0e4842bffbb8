"""In-batch negatives: one pool for a step, from all of its targets, the same whatever the workers and the carrier."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genrec.data.batch import Batch
from genrec.data.micro_batches import worker_tables
from genrec.data.plan import Plan, make_plan
from genrec.data.ray_stream import _to_row
from genrec.data.stream import Place, local_tables, worker_batches
from genrec.data.target_actions import TargetRule
from genrec.errors import ConfigError

PARTS, POOL = 4, 12
BATCH = ("batch.tokens_per_step=48", f"batch.micro_batches_per_step={PARTS}", "batch.chunk_tokens=1000")
IN_BATCH = f"loss={{name: sampled-softmax, negatives: in-batch, num_negatives: {POOL}}}"


@pytest.fixture
def folder(tmp_path: Path, write_prepared) -> Path:
    generator = np.random.default_rng(5)
    sequences = [generator.integers(1, 50, generator.integers(1, 30)).tolist() for _ in range(500)]
    return write_prepared(tmp_path / "set", sequences, rows_per_group=16, num_items=50)


@pytest.fixture
def plan(folder: Path, make_config) -> Plan:
    return make_plan(make_config(folder, *BATCH, IN_BATCH))


def read(plan: Plan, start: int = 0, rank: int = 0, workers: int = 1) -> list[tuple[Place, Batch]]:
    span = {"start_step": start, "end_step": plan.num_steps(2, None), "rank": rank, "workers": workers}
    return list(worker_batches(local_tables(plan, **span), **span, parts=PARTS))


def pools(batches: list[tuple[Place, Batch]]) -> dict[tuple[int, int], list[int]]:
    found = {}
    for place, batch in batches:
        assert batch.negatives is not None
        found[place.step, place.part] = batch.negatives.tolist()
    return found


def test_a_pool_is_drawn_from_the_targets_of_its_step_and_is_the_same_in_all_parts(plan: Plan) -> None:
    batches = read(plan)
    targets: dict[int, Counter[int]] = {}
    for place, batch in batches:
        targets.setdefault(place.step, Counter()).update(batch.targets[batch.targets >= 0].tolist())
    found = pools(batches)
    for step, of_step in targets.items():
        pool = found[step, 0]
        assert all(found[step, part] == pool for part in range(PARTS))
        assert Counter(pool) <= of_step  # no position twice
        assert len(pool) == min(POOL, of_step.total())
    assert any(len(pool) == POOL for pool in found.values())


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_has_the_same_pools(plan: Plan, workers: int) -> None:
    shared = {}
    for rank in range(workers):
        shared |= pools(read(plan, rank=rank, workers=workers))
    assert shared == pools(read(plan))


def test_a_restart_goes_on_with_the_same_pools(plan: Plan) -> None:
    whole = pools(read(plan))
    assert pools(read(plan, start=5)) == {place: pool for place, pool in whole.items() if place[0] >= 5}


def test_the_rows_of_ray_data_carry_the_same_pools(plan: Plan) -> None:
    """What a map task makes for two workers, written and read as Ray Data's rows are; Ray itself is not needed here."""
    end = plan.num_steps(2, None)
    chunks = plan.chunks(start_step=0, end_step=end)
    tables = worker_tables(plan.spec, chunks, ranks=range(2), workers=2, start_step=0, end_step=end)
    rows = [_to_row(table)[0].as_buffer() for table in tables]
    found = {}
    for rank in range(2):
        read_back = (pa.ipc.open_stream(row).read_all() for row in rows[rank::2])
        span = {"start_step": 0, "end_step": end, "rank": rank, "workers": 2}
        found |= pools(list(worker_batches(read_back, **span, parts=PARTS)))
    assert found == pools(read(plan))


def test_each_epoch_and_seed_draws_anew(plan: Plan, folder: Path, make_config) -> None:
    found = pools(read(plan))
    per_epoch = plan.num_steps(1, None)
    assert found[0, 0] != found[per_epoch, 0]
    assert pools(read(make_plan(make_config(folder, *BATCH, IN_BATCH, "seed=2"))))[0, 0] != found[0, 0]
    assert pools(read(make_plan(make_config(folder, *BATCH, IN_BATCH)))) == found


def test_a_pool_changes_nothing_else(plan: Plan, folder: Path, make_config) -> None:
    without = make_plan(make_config(folder, *BATCH))
    for (place, batch), (_, plain) in zip(read(plan), read(without), strict=True):
        assert plain.negatives is None
        assert batch.items.tolist() == plain.items.tolist(), place
        assert batch.micro_batch_id == plain.micro_batch_id


def test_more_than_a_step_can_have_is_refused(folder: Path, make_config) -> None:
    negatives = "loss={{name: sampled-softmax, negatives: {}, num_negatives: {}}}"
    assert make_plan(make_config(folder, *BATCH, negatives.format("in-batch", 48))).spec.pool_size == 48
    assert make_plan(make_config(folder, *BATCH, negatives.format("mixed", 96))).spec.pool_size == 48
    for kind, number in (("in-batch", 49), ("mixed", 98)):
        with pytest.raises(ConfigError, match=r"makes 49 targets of a step negatives.*\(48\); raise .* to 49 or more"):
            make_plan(make_config(folder, *BATCH, negatives.format(kind, number)))


def test_only_wanted_actions_are_in_a_pool(plan: Plan) -> None:
    plan.spec = replace(plan.spec, targets=TargetRule(actions=(2,)))  # the set's only action is 1
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    batches = worker_batches(local_tables(plan, **span), **span, parts=PARTS, targets=TargetRule(actions=(2,)))
    assert all(pool == [] for pool in pools(list(batches)).values())


def test_popular_items_are_in_pools_as_often_as_they_are_targets(plan: Plan) -> None:
    """Over an epoch an item is in the pools in proportion to its share of the targets."""
    drawn: Counter[int] = Counter()
    targets: Counter[int] = Counter()
    for place, batch in read(plan):
        targets.update(batch.targets[batch.targets >= 0].tolist())
        if place.part == 0 and batch.negatives is not None:
            drawn.update(batch.negatives.tolist())
    share = drawn.total() / targets.total()
    assert 0.1 < share < 0.9
    expected = np.array([targets[item] * share for item in range(1, 50)])
    found = np.array([drawn[item] for item in range(1, 50)])
    assert (np.abs(found - expected) < 4.5 * np.sqrt(expected)).all()
