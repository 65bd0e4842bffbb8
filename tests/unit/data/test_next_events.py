"""What batches tell heads: the next event of every token, chosen as a target or not, and counts of whole steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_sets import set_actions

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.manifest import load_manifest
from genrec.data.plan import make_plan
from genrec.data.stream import Place, local_tables, worker_batches
from genrec.data.target_actions import target_rule

PARTS = 4
ACTION = "heads={action: {}}"
STEPS = f"batch={{tokens_per_step: 64, micro_batches_per_step: {PARTS}}}"


@pytest.fixture
def prepared(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    """60 users; an item tells its action: 0 (unknown), stream, skip or save."""
    generator = np.random.default_rng(0)
    actions = [generator.integers(0, 4, generator.integers(3, 12)).tolist() for _ in range(60)]
    sequences = [[4 * int(generator.integers(1, 9)) + action for action in row] for row in actions]
    folder = write_prepared(tmp_path / "set", sequences, num_items=40, rows_per_group=16)
    return set_actions(folder, actions, ("stream", "skip", "save"))


def batches_of(config: ExperimentConfig, rank: int = 0, workers: int = 1) -> list[tuple[Place, Batch]]:
    plan, rule = make_plan(config), target_rule(config, load_manifest(config.data.prepared))
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": rank, "workers": workers}
    return list(worker_batches(local_tables(plan, **span), **span, parts=PARTS, targets=rule))


@pytest.mark.parametrize("chosen", ["null", "[save]"])
def test_every_next_event_is_told(prepared: Path, make_config, chosen: str) -> None:
    batches = batches_of(make_config(prepared, ACTION, STEPS, f"sequence.target_actions={chosen}"))
    counts: dict[int, int] = {}
    num_checked = 0
    for place, batch in batches:
        assert batch.next_items is not None and batch.next_actions is not None
        known = batch.targets >= 0
        assert torch.equal(batch.next_items[known], batch.targets[known])
        assert torch.equal(batch.next_actions, batch.next_items % 4)
        inside = np.setdiff1d(np.arange(batch.num_tokens), batch.last_positions.numpy())
        assert torch.equal(batch.next_items[inside], batch.items[inside + 1])
        counts[place.step] = counts.get(place.step, 0) + int((batch.next_actions > 0).sum())
        num_checked += len(inside)
    assert num_checked > 100 and len(counts) > 3
    assert all(batch.step_actions == counts[place.step] for place, batch in batches)


def test_without_heads_nothing_is_told(prepared: Path, make_config) -> None:
    for _, batch in batches_of(make_config(prepared, STEPS)):
        assert batch.next_items is None and batch.next_actions is None


def test_two_workers_read_what_one_does(prepared: Path, make_config) -> None:
    config = make_config(prepared, ACTION, STEPS)

    def told(batches: list[tuple[Place, Batch]]) -> dict[tuple[int, int], tuple[int, list[int], list[int]]]:
        return {(p.step, p.part): (b.step_actions, b.next_items.tolist(), b.next_actions.tolist()) for p, b in batches}

    assert told(batches_of(config, 0, 2)) | told(batches_of(config, 1, 2)) == told(batches_of(config))


def test_padding_has_no_next_event(tmp_path: Path, write_prepared: Callable[..., Path], make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    padding = [b for _, b in batches_of(make_config(folder, STEPS, ACTION)) if not len(b.users)]
    assert len(padding) == PARTS - 1
    for batch in padding:
        assert batch.next_items.tolist() == batch.next_actions.tolist() == [0]
        assert (batch.targets.tolist(), batch.offsets.tolist(), batch.step_actions) == ([-1], [0, 1], 1)


def test_a_batch_moves_with_its_labels(prepared: Path, make_config) -> None:
    _, batch = batches_of(make_config(prepared, ACTION, STEPS, "loss.action_weights={save: 2}"))[0]
    moved = batch.to(torch.device("meta"))
    for name in ("items", "targets", "target_weights", "next_items", "next_actions"):
        assert getattr(moved, name).is_meta
    assert not moved.users.is_meta and not moved.starts.is_meta
