"""Another number of micro-batches: the steps keep their windows, micro-batches stay even, and none has a known name."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.packing import PackingRule, deal_anew, num_steps, pack, window_cost
from genrec.data.plan import make_plan
from genrec.data.stream import Place, local_tables, worker_batches
from genrec.errors import ConfigError

PACKED = 4


def dealt(lengths: np.ndarray, rule: PackingRule, parts: int) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """The windows of the micro-batches of every step: as packed, and dealt anew into `parts`."""
    order, borders = pack(lengths, rule, num_steps(lengths, rule), np.random.default_rng(0))
    again, new_borders = deal_anew(lengths[order], borders, rule, parts)
    return _by_step(order, borders, rule.micro_batches_per_step), _by_step(order[again], new_borders, parts)


def _by_step(order: np.ndarray, borders: np.ndarray, parts: int) -> list[list[np.ndarray]]:
    micro_batches = np.split(order, borders[1:-1])
    return [micro_batches[first : first + parts] for first in range(0, len(micro_batches), parts)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    packed=st.integers(1, 8),
    parts=st.integers(1, 12),
    room=st.integers(40, 200),
)
def test_every_step_keeps_its_windows(lengths: list[int], packed: int, parts: int, room: int) -> None:
    values = np.array(lengths)
    rule = PackingRule(max(room, 40) * packed, packed, steps_per_block=4)
    before, after = dealt(values, rule, parts)
    assert [sorted(np.concatenate(step)) for step in after] == [sorted(np.concatenate(step)) for step in before]
    assert {len(step) for step in after} == {parts}
    fullest = max(int(values[windows].sum()) for step in after for windows in step)
    assert fullest <= rule.tokens_per_step // parts + values.max()


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("longest", [50, 200, 1_024])
def test_micro_batches_that_are_dealt_anew_cost_the_same(longest: int, parts: int) -> None:
    """Zipf(1.2) lengths, room for eight of the longest windows: within 3% at every step, as when they were packed."""
    rule = PackingRule(max(longest * 8, 2_048) * 16, PACKED, steps_per_block=16)
    lengths = np.minimum(np.random.default_rng(7).zipf(1.2, 40 * rule.tokens_per_step // longest), longest)
    _, after = dealt(lengths, rule, parts)
    cost = np.array([[window_cost(lengths[windows]).sum() for windows in step] for step in after])
    assert len(cost) > 5
    assert ((cost.max(axis=1) - cost.min(axis=1)) / cost.max(axis=1)).max() < 0.03
    assert max(lengths[windows].sum() for step in after for windows in step) <= rule.tokens_per_step // parts


@pytest.fixture(scope="module")
def config_of(write_prepared, make_config) -> Iterator:
    """`config_of(parts, *overrides)`: a run that was packed for `PACKED` micro-batches and goes on with `parts`."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = np.random.default_rng(3).integers(1, 60, 300)
        sequences = [np.random.default_rng(n).integers(1, 50, n).tolist() for n in lengths]
        prepared = write_prepared(Path(folder) / "set", sequences, rows_per_group=8, num_items=50)

        def config(parts: int, *overrides: str) -> ExperimentConfig:
            batch = f"tokens_per_step: 144, chunk_tokens: 9, micro_batches_per_step: {parts}, packed_parts: {PACKED}"
            return make_config(prepared, f"batch={{{batch}}}", *overrides)

        yield config


def stream(config: ExperimentConfig, rank: int = 0, workers: int = 1) -> list[tuple[Place, Batch]]:
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": plan.num_steps(2, None), "rank": rank, "workers": workers}
    parts = config.batch.micro_batches_per_step
    return list(worker_batches(local_tables(plan, **span), **span, parts=parts))


def events_by_step(batches: list[tuple[Place, Batch]]) -> dict[int, list]:
    """Who was trained on what, and how much it counts, step by step."""
    found: dict[int, list] = {}
    for place, batch in batches:
        borders = batch.offsets.tolist()
        for row, user in enumerate(batch.users.tolist()):
            events = batch.items[borders[row] : borders[row + 1]].tolist()
            window = (user, batch.starts[row].item(), events, batch.step_targets, place.epochs_done)
            found.setdefault(place.step, []).append(window)
    return {step: sorted(windows) for step, windows in found.items()}


@pytest.mark.parametrize("window", ["last", "random", "sliding", "stochastic"])
def test_the_same_events_in_every_step(config_of, window: str) -> None:
    expected = events_by_step(stream(config_of(PACKED, f"sequence.window={window}")))
    for parts in (1, 2, 6, 8):
        assert events_by_step(stream(config_of(parts, f"sequence.window={window}"))) == expected


def test_workers_share_what_was_dealt_anew(config_of) -> None:
    alone = {tuple(place): batch.users.tolist() for place, batch in stream(config_of(6))}
    shared = {
        tuple(place): batch.users.tolist()
        for rank in range(3)
        for place, batch in stream(config_of(6), rank, workers=3)
    }
    assert shared == alone


def test_no_two_ways_of_dealing_have_a_micro_batch_of_one_name(config_of) -> None:
    names = [[batch.micro_batch_id for _, batch in stream(config_of(parts))] for parts in (1, 2, 3, PACKED, 6, 8)]
    everything = [name for found in names for name in found]
    assert len(everything) == len(set(everything)) > 0
    (native,) = (found for found, parts in zip(names, (1, 2, 3, PACKED, 6, 8), strict=True) if parts == PACKED)
    assert min(name.position for name in native) == 0


def test_micro_batches_too_small_for_a_window_are_refused_with_a_number_that_fits(config_of) -> None:
    with pytest.raises(ConfigError, match=r"micro_batches_per_step = 7 tokens; .*micro_batches_per_step=18 or less"):
        make_plan(config_of(20))
    make_plan(config_of(18))
