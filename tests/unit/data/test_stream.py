"""Plan and stream: the order is pure, each window is trained once an epoch, and workers and restarts change nothing."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec.config import GlobalTimeSplit
from genrec.data.batch import Batch
from genrec.data.micro_batches import worker_tables
from genrec.data.plan import Plan, make_plan
from genrec.data.stream import Place, local_tables, worker_batches
from genrec.errors import ConfigError, DataError, RunError

PARTS = 4
OVERRIDES = ("batch.tokens_per_step=48", f"batch.micro_batches_per_step={PARTS}")


@pytest.fixture
def sequences() -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(1, 50, generator.integers(1, 30)).tolist() for _ in range(600)]


@pytest.fixture
def plan(tmp_path: Path, sequences: list[list[int]], write_prepared, make_config) -> Plan:
    folder = write_prepared(tmp_path / "set", sequences, rows_per_group=16, num_files=2, num_items=50)
    return make_plan(make_config(folder, *OVERRIDES, "batch.chunk_tokens=1000"))


def read(plan: Plan, start: int, end: int, rank: int, workers: int) -> list[tuple[Place, Batch]]:
    tables = local_tables(plan, start_step=start, end_step=end, rank=rank, workers=workers)
    return list(worker_batches(tables, start_step=start, end_step=end, rank=rank, workers=workers, parts=PARTS))


def fingerprint(place: Place, batch: Batch) -> tuple:
    tensors = (batch.items, batch.targets, batch.times, batch.target_times, batch.actions, batch.offsets)
    tensors += (batch.users, batch.starts)
    return (*place, batch.micro_batch_id, batch.step_targets, *(tuple(t.tolist()) for t in tensors))


def test_each_epoch_trains_each_window_once(plan: Plan, sequences: list[list[int]]) -> None:
    steps = plan.num_steps(2, None)
    windows: dict[int, list[tuple]] = {0: [], 1: []}
    for _, batch in read(plan, 0, steps, 0, 1):
        for a, b in zip(batch.offsets, batch.offsets[1:], strict=False):
            if batch.targets[a] >= 0:
                events = (*batch.items[a:b].tolist(), batch.targets[b - 1].item())
                windows[batch.micro_batch_id.epoch].append(events)
                assert batch.targets[a : b - 1].tolist() == batch.items[a + 1 : b].tolist()
    trained = [s[:-2] if len(s) >= 3 else s for s in sequences]
    expected = sorted(tuple(s[-9:]) for s in trained if len(s) >= 2)
    assert sorted(windows[0]) == sorted(windows[1]) == expected
    assert windows[0] != windows[1]


def test_targets_of_a_step_are_counted_over_all_its_micro_batches(plan: Plan) -> None:
    counted: dict[int, int] = {}
    claimed: dict[int, set[int]] = {}
    for place, batch in read(plan, 0, plan.num_steps(1, None), 0, 1):
        counted[place.step] = counted.get(place.step, 0) + int((batch.targets >= 0).sum())
        claimed.setdefault(place.step, set()).add(batch.step_targets)
    assert claimed == {step: {targets} for step, targets in counted.items()}


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_shares_the_same_micro_batches(plan: Plan, workers: int) -> None:
    steps = plan.num_steps(2, None)
    alone = {(p.step, p.part): fingerprint(p, b) for p, b in read(plan, 0, steps, 0, 1)}
    shared = {}
    for rank in range(workers):
        for place, batch in read(plan, 0, steps, rank, workers):
            assert place.part % workers == rank
            shared[place.step, place.part] = fingerprint(place, batch)
    assert shared == alone


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_restart_goes_on_with_the_next_micro_batch(plan: Plan, start: int) -> None:
    steps = plan.num_steps(2, None)
    whole = [fingerprint(p, b) for p, b in read(plan, 0, steps, 0, 1)]
    assert [fingerprint(p, b) for p, b in read(plan, start, steps, 0, 1)] == whole[start * PARTS :]


def test_the_last_step_of_an_epoch_says_so(plan: Plan) -> None:
    per_epoch = plan.num_steps(1, None)
    ends = {p.step for p, _ in read(plan, 0, plan.num_steps(3, None), 0, 1) if p.ends_epoch}
    assert per_epoch - 1 in ends
    assert len(ends) == 3


def test_the_order_depends_on_seed_and_data(plan: Plan, tmp_path: Path, sequences, write_prepared, make_config) -> None:
    folder = tmp_path / "set"
    again = make_plan(make_config(folder, *OVERRIDES, "batch.chunk_tokens=1000"))
    other_seed = make_plan(make_config(folder, *OVERRIDES, "batch.chunk_tokens=1000", "seed=2"))
    write_prepared(tmp_path / "other", sequences[::-1], rows_per_group=16, num_files=2, num_items=50)
    other_data = make_plan(make_config(tmp_path / "other", *OVERRIDES, "batch.chunk_tokens=1000"))
    first = [fingerprint(p, b) for p, b in read(plan, 0, 4, 0, 1)]
    assert [fingerprint(p, b) for p, b in read(again, 0, 4, 0, 1)] == first
    assert [fingerprint(p, b) for p, b in read(other_seed, 0, 4, 0, 1)] != first
    assert [fingerprint(p, b) for p, b in read(other_data, 0, 4, 0, 1)] != first


def test_a_block_is_one_workers_share_of_a_few_steps(plan: Plan) -> None:
    chunk = plan.epoch(0)[0]
    end = chunk.num_steps - 1
    spec = replace(plan.spec, rule=replace(plan.spec.rule, steps_per_block=2))
    tables = list(worker_tables(spec, [chunk], ranks=range(2), workers=2, start_step=1, end_step=end))
    assert len(tables) == 2 * -(-(end - 1) // 2)
    for number, table in enumerate(tables):
        places = list(zip(table["step"].to_pylist(), table["part"].to_pylist(), strict=True))
        assert {part % 2 for _, part in places} == {number % 2}
        assert places == sorted(places)
        assert {step for step, _ in places} <= {1 + number // 2 * 2, 2 + number // 2 * 2}


def test_small_steps_go_in_large_blocks(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5]])
    for tokens_per_step, steps in ((131_072, 16), (8_192, 16), (1_000, 131)):
        plan = make_plan(make_config(folder, f"batch.tokens_per_step={tokens_per_step}"))
        assert plan.spec.rule.steps_per_block == steps


def test_an_epoch_has_several_chunks_of_about_the_same_size(plan: Plan) -> None:
    chunks = plan.epoch(0)
    tokens = [chunk.num_tokens for chunk in chunks]
    assert len(chunks) >= 2
    assert max(tokens) < 1.3 * min(tokens)


def test_a_set_that_changes_under_a_run_is_noticed(plan: Plan, tmp_path: Path, sequences, write_prepared) -> None:
    shutil.rmtree(tmp_path / "set")
    write_prepared(tmp_path / "set", [s[:-1] or s for s in sequences], rows_per_group=16, num_files=2, num_items=50)
    with pytest.raises(DataError, match="has changed since the run was started; start the same command again"):
        read(plan, 0, 4, 0, 1)


def test_a_random_window_is_a_stretch_of_the_history(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [list(range(1, 41)) for _ in range(64)], rows_per_group=64)
    plan = make_plan(make_config(folder, *OVERRIDES, "sequence.window=random"))
    starts = set()
    for _, batch in read(plan, 0, plan.num_steps(1, None), 0, 1):
        for a, b in zip(batch.offsets, batch.offsets[1:], strict=False):
            items = batch.items[a:b].tolist()
            assert items == list(range(items[0], items[0] + 8))
            starts.add(items[0])
    assert len(starts) > 10
    assert max(starts) <= 30  # events 39 and 40 are held out


def test_a_global_time_split_trains_on_nothing_from_its_periods(tmp_path: Path, write_prepared, make_config) -> None:
    generator = np.random.default_rng(1)
    sequences = [generator.integers(1, 50, 20).tolist() for _ in range(60)]
    times = [np.sort(generator.integers(0, 1_000, 20)).tolist() for _ in range(60)]
    split = GlobalTimeSplit(name="global-time", validation_from=600, test_from=800)
    folder = write_prepared(tmp_path / "set", sequences, times=times, split=split)
    plan = make_plan(make_config(folder, *OVERRIDES))
    batches = [b for _, b in read(plan, 0, plan.num_steps(1, None), 0, 1)]
    assert max(int(b.target_times.max()) for b in batches) < 600


def test_fewer_windows_than_micro_batches_still_gives_every_worker_its_part(
    tmp_path: Path, write_prepared, make_config
) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5]])
    plan = make_plan(make_config(folder, *OVERRIDES))
    batches = [b for _, b in read(plan, 0, plan.num_steps(1, None), 0, 1)]
    assert len(batches) == PARTS
    assert sorted(len(b.users) for b in batches) == [0, 0, 0, 1]
    assert sum(int((b.targets >= 0).sum()) for b in batches) == 2
    assert all(b.num_tokens > 0 for b in batches)


def test_a_stream_out_of_order_or_cut_short_is_an_error(plan: Plan) -> None:
    tables = list(local_tables(plan, start_step=0, end_step=4, rank=0, workers=1))
    limits = {"start_step": 0, "end_step": 4, "rank": 0, "workers": 1, "parts": PARTS}
    with pytest.raises(RunError, match="out of order"):
        list(worker_batches(iter([tables[0].slice(1)]), **limits))
    with pytest.raises(RunError, match="out of order"):
        list(worker_batches(iter([tables[0].slice(PARTS)]), **limits))
    with pytest.raises(RunError, match="ended before step 0"):
        list(worker_batches(iter([]), **limits))


def test_a_window_must_fit_a_micro_batch(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5]])
    with pytest.raises(ConfigError, match=r"sequence.max_length \(8\) must fit .* raise batch.tokens_per_step to 32"):
        make_plan(make_config(folder, "batch.tokens_per_step=16", "batch.micro_batches_per_step=4"))


def test_a_log_without_two_events_of_one_user_cannot_be_trained_on(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1], [2], [3]])
    with pytest.raises(DataError, match="no user with two training events"):
        make_plan(make_config(folder))
