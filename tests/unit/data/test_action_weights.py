"""Weights of targets by their action, from the config to the batches: sums over whole steps, alike for any workers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prepared_sets import set_actions

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.manifest import load_manifest
from genrec.data.plan import make_plan
from genrec.data.stream import Place, local_tables, worker_batches
from genrec.data.target_actions import target_rule
from genrec.errors import ConfigError

PARTS = 4
STEPS = (f"batch={{tokens_per_step: 64, micro_batches_per_step: {PARTS}}}",)
WEIGHTS = "loss.action_weights={save: 2, skip: 0.25}"
OF_CODE = {1: 1.0, 2: 0.25, 3: 2.0}  # stream, skip, save


@pytest.fixture
def prepared(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    """60 users whose events are streams, skips and saves at random; an item tells its action."""
    generator = np.random.default_rng(0)
    actions = [generator.integers(1, 4, generator.integers(4, 12)).tolist() for _ in range(60)]
    sequences = [[3 * int(generator.integers(0, 9)) + action for action in row] for row in actions]
    folder = write_prepared(tmp_path / "set", sequences, num_items=30, rows_per_group=16)
    return set_actions(folder, actions, ("stream", "skip", "save"))


def batches_of(config: ExperimentConfig, rank: int = 0, workers: int = 1) -> list[tuple[Place, Batch]]:
    plan, manifest = make_plan(config), load_manifest(config.data.prepared)
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": rank, "workers": workers}
    return list(
        worker_batches(
            local_tables(plan, **span),
            **span,
            parts=PARTS,
            targets=target_rule(config, manifest),
        )
    )


def action_of(item: int) -> int:
    return (item - 1) % 3 + 1


@pytest.mark.parametrize("targets", ["null", "[stream, skip, save]"])
def test_a_target_has_the_weight_of_its_action_and_a_step_the_sum(prepared: Path, make_config, targets: str) -> None:
    batches = batches_of(make_config(prepared, *STEPS, WEIGHTS, f"sequence.target_actions={targets}"))
    sums: dict[int, float] = {}
    for place, batch in batches:
        assert batch.target_weights is not None
        rows = (batch.targets >= 0).nonzero().squeeze(1)
        found = batch.target_weights[rows].tolist()
        assert found == [OF_CODE[action_of(item)] for item in batch.targets[rows].tolist()]
        sums[place.step] = sums.get(place.step, 0.0) + sum(found)
    assert len(sums) > 3
    for place, batch in batches:
        assert batch.step_weight == pytest.approx(sums[place.step], rel=1e-12)
        assert batch.step_weight != batch.step_targets


def test_only_chosen_targets_count(prepared: Path, make_config) -> None:
    chosen = "sequence.target_actions=[stream, save]"
    batches = batches_of(make_config(prepared, *STEPS, "loss.action_weights={save: 2}", chosen))
    for step in {place.step for place, _ in batches}:
        parts = [batch for place, batch in batches if place.step == step]
        items = [item for batch in parts for item in batch.targets[batch.targets >= 0].tolist()]
        assert {action_of(item) for item in items} == {1, 3}
        assert parts[0].step_weight == pytest.approx(sum(OF_CODE[action_of(item)] for item in items), rel=1e-12)
        assert parts[0].step_targets == len(items)


def test_without_weights_a_step_weighs_its_targets(prepared: Path, make_config) -> None:
    for _, batch in batches_of(make_config(prepared, *STEPS)):
        assert batch.target_weights is None
        assert batch.step_weight == batch.step_targets


def test_a_step_without_weight_can_be_divided_by(prepared: Path, make_config) -> None:
    only_skips = "sequence.target_actions=[skip]"
    batches = batches_of(make_config(prepared, *STEPS, "loss.action_weights={skip: 0}", only_skips))
    assert {batch.step_weight for _, batch in batches} == {1.0}


def test_two_workers_read_what_one_does(prepared: Path, make_config) -> None:
    config = make_config(prepared, *STEPS, WEIGHTS)

    def told(batches: list[tuple[Place, Batch]]) -> dict[tuple[int, int], tuple[float, list[float]]]:
        return {(p.step, p.part): (b.step_weight, b.target_weights.tolist()) for p, b in batches}

    shared = told(batches_of(config, 0, 2)) | told(batches_of(config, 1, 2))
    assert shared == told(batches_of(config))


def test_steps_that_are_dealt_anew_weigh_the_same(prepared: Path, make_config) -> None:
    packed = make_config(prepared, *STEPS, WEIGHTS)
    batch = packed.batch.model_copy(update={"packed_parts": PARTS, "micro_batches_per_step": 2})
    plan = make_plan(packed.model_copy(update={"batch": batch}))
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    dealt = [table["step_weight"].to_pylist() for table in local_tables(plan, **span)]
    expected = {place.step: b.step_weight for place, b in batches_of(packed)}
    assert sorted(weight for weights in dealt for weight in weights) == sorted(2 * list(expected.values()))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loss.action_weights={skipp: 0.1}", "loss.action_weights has 'skipp', .*; did you mean skip"),
        ("loss.action_weights={zzz: 0.1}", "'zzz', which is no action .* it has stream, skip, save"),
    ],
)
def test_an_unknown_action_is_refused(prepared: Path, make_config, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_plan(make_config(prepared, override))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["loss.action_weights={skip: -1}"], "must be 0 to 1000; mend skip"),
        (["loss.action_weights={skip: 2}", "sequence.target_actions=[save]"], "has skip, .* leaves that out"),
    ],
)
def test_a_weight_that_means_nothing_is_refused(prepared: Path, make_config, overrides: list[str], sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(prepared, *overrides)
