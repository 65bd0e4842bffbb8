"""The cursor: whatever kills, restarts and worker counts, each window is trained exactly once per epoch."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.data.micro_batches import worker_tables
from genrec.data.plan import Plan, make_plan
from genrec.data.stream import local_tables, worker_batches

PARTS = 12
EPOCHS = 2
LENGTHS = np.random.default_rng(3).integers(1, 60, 300)
WINDOWS = ("last", "random", "sliding", "stochastic")


@pytest.fixture(scope="module")
def plans(write_prepared, make_config) -> Iterator[dict[str, Plan]]:
    with tempfile.TemporaryDirectory() as folder:
        sequences = [np.random.default_rng(n).integers(1, 50, n).tolist() for n in LENGTHS]
        prepared = write_prepared(Path(folder) / "set", sequences, rows_per_group=8, num_files=2, num_items=50)
        batch = f"batch={{tokens_per_step: 144, micro_batches_per_step: {PARTS}, chunk_tokens: 9}}"
        plans = {window: make_plan(make_config(prepared, batch, f"sequence.window={window}")) for window in WINDOWS}
        for plan in plans.values():
            plan.spec = replace(plan.spec, rule=replace(plan.spec.rule, steps_per_block=3))  # several blocks a chunk
        yield plans


def dealt_tables(plan: Plan, start: int, end: int, rank: int, workers: int) -> Iterator[pa.Table]:
    """One worker's tables out of those that a Ray task yields, dealt to the workers in turn as Ray Data does."""
    chunks = plan.chunks(start_step=start, end_step=end)
    tables = worker_tables(plan.spec, chunks, ranks=range(workers), workers=workers, start_step=start, end_step=end)
    for number, table in enumerate(tables):
        if number % workers == rank:
            yield table


def trained(plan: Plan, start: int, end: int, workers: int, last_step: int, *, dealt: bool) -> dict[tuple, list]:
    """(step, part) -> windows of steps `[start, end)`, by workers whose streams go on until `last_step`."""
    found = {}
    for rank in range(workers):
        span = {"start_step": start, "end_step": last_step, "rank": rank, "workers": workers}
        tables = dealt_tables(plan, start, last_step, rank, workers) if dealt else local_tables(plan, **span)
        for place, batch in worker_batches(tables, **span, parts=PARTS):
            if place.step >= end:
                break  # killed here
            named = zip(batch.users.tolist(), batch.starts.tolist(), strict=True)
            found[place.step, place.part] = [(batch.micro_batch_id.epoch, *window) for window in named]
        tables.close()
    return found


def expected(window: str) -> list[tuple[int, int]] | None:
    """(user, start) of every window of an epoch, where that can be written down without the code under test."""
    tokens = {user: (n - 2 if n >= 3 else n) - 1 for user, n in enumerate(LENGTHS.tolist())}
    if window == "last":
        return [(user, max(t - 8, 0)) for user, t in tokens.items() if t > 0]
    if window == "sliding":
        return [(user, max(end - 8, 0)) for user, t in tokens.items() for end in range(t, 0, -8)]
    return None


@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize("window", ["last", "sliding"])
def test_without_a_kill(plans: dict[str, Plan], window: str, dealt: bool) -> None:
    end = plans[window].num_steps(EPOCHS, None)
    found = trained(plans[window], 0, end, 3, end, dealt=dealt)
    windows = Counter(named for micro_batch in found.values() for named in micro_batch)
    once = expected(window)
    assert once is not None
    assert windows == Counter((epoch, *named) for epoch in range(EPOCHS) for named in once)


def test_a_small_set_is_passed_through_more_often_for_min_steps(plans: dict[str, Plan]) -> None:
    """Whole passes: the first that ends at `min_steps` or after it is the last, unless `max_steps` cuts it."""
    plan = plans["last"]
    ends = [plan.num_steps(epochs, None) for epochs in range(1, 6)]
    assert ends[0] < ends[3]
    for wanted, expected in ((1, ends[0]), (ends[0] + 1, ends[1]), (ends[3], ends[3]), (ends[3] + 1, ends[4])):
        assert plan.num_steps(1, None, wanted) == expected
    assert plan.num_steps(3, None, ends[0]) == ends[2]
    assert plan.num_steps(1, ends[2] + 1, ends[4]) == ends[2] + 1
    assert plan.num_steps(None, 7, 1_000) == 7


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dealt", [False, True])
def test_any_kills_and_worker_counts_train_every_window_once(plans: dict[str, Plan], dealt: bool, data) -> None:
    """Lives of 1 to 4 workers; each ends some steps after a checkpoint, and the next goes on from that checkpoint."""
    plan = plans[data.draw(st.sampled_from(WINDOWS), label="window")]
    last_step = plan.num_steps(EPOCHS, None)
    counted: dict[tuple, list] = {}
    start = 0
    for _ in range(data.draw(st.integers(0, 3), label="kills")):
        killed = data.draw(st.integers(start, last_step), label="killed before step")
        checkpoint = data.draw(st.integers(start, killed), label="checkpoint at step")
        workers = data.draw(st.integers(1, 4), label="workers")
        life = trained(plan, start, killed, workers, last_step, dealt=dealt)
        counted |= {place: windows for place, windows in life.items() if place[0] < checkpoint}
        start = checkpoint
    workers = data.draw(st.integers(1, 4), label="last workers")
    life = trained(plan, start, last_step, workers, last_step, dealt=dealt)
    assert not counted.keys() & life.keys()
    counted |= life
    untouched = trained(plan, 0, last_step, 1, last_step, dealt=False)
    assert counted == untouched
    windows = Counter(named for micro_batch in counted.values() for named in micro_batch)
    assert max(windows.values()) == 1
    assert {epoch for epoch, _, _ in windows} == set(range(EPOCHS))
