"""Only events with a wanted action are predicted, in training and in evaluation; the others stay in the history."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest, describe_sequence_file, load_manifest, save_manifest
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.data.target_actions import target_rule
from genrec.errors import ConfigError
from genrec.evaluation.users import evaluation_batches

STREAM, SKIP, SAVE = 1, 2, 3
NAMES = ("stream", "skip", "save")


@pytest.fixture
def prepared(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    """60 users whose events are streams, skips and saves at random."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, generator.integers(4, 12)).tolist() for _ in range(60)]
    folder = write_prepared(tmp_path / "set", sequences, num_items=30, rows_per_group=16)
    path = folder / "sequences" / "part-00000.parquet"
    table = pq.read_table(path)
    actions = [generator.integers(1, 4, length).tolist() for length in table["length"].to_pylist()]
    at = table.schema.get_field_index("actions")
    table = table.set_column(at, table.schema.field(at), pa.array(actions, pa.list_(pa.uint8())))
    pq.write_table(table, path, row_group_size=16)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    files = (describe_sequence_file(folder, path.name),)  # it was written anew
    save_manifest(folder, manifest.model_copy(update={"actions": NAMES, "files": files}))
    return folder


def trained(config: ExperimentConfig) -> list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """(step, step_targets, targets, actions, last tokens of the windows) of every micro-batch of one epoch."""
    plan = make_plan(config)
    manifest = load_manifest(config.data.prepared)
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    rule = target_rule(config, manifest)
    batches = worker_batches(
        local_tables(plan, **span), **span, parts=config.batch.micro_batches_per_step, targets=rule
    )
    return [
        (place.step, b.step_targets, b.targets.numpy(), b.actions.numpy(), b.last_positions.numpy())
        for place, b in batches
    ]


def test_counts_and_masks_agree(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    every = trained(make_config(prepared))
    wanted = trained(make_config(prepared, "sequence.target_actions=[stream, save]"))
    assert len(every) == len(wanted)
    num_masked = 0
    for (step, _, all_targets, actions, _), (same_step, _, targets, same_actions, _) in zip(every, wanted, strict=True):
        assert step == same_step
        assert (actions == same_actions).all()  # skips stay in the history
        masked = targets != all_targets
        assert (targets[masked] == -1).all()
        num_masked += int(masked.sum())
    assert num_masked > 50
    for chosen in (every, wanted):
        for step in {row[0] for row in chosen}:
            rows = [row for row in chosen if row[0] == step]
            assert {row[1] for row in rows} == {sum(int((row[2] >= 0).sum()) for row in rows)}


def test_masks_exactly_the_unwanted(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    """Inside a window the next token is the target, so its action says whether it counts."""
    num_checked = 0
    for _, _, targets, actions, ends in trained(make_config(prepared, "sequence.target_actions=[skip]")):
        inside = np.setdiff1d(np.arange(len(targets)), ends)
        assert ((targets[inside] >= 0) == (actions[inside + 1] == SKIP)).all()
        num_checked += len(inside)
    assert num_checked > 100


def test_evaluates_only_wanted_targets(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    manifest = load_manifest(prepared)
    last_action = {
        row["user"]: row["actions"][-1]
        for row in pq.read_table(prepared / "sequences" / "part-00000.parquet").to_pylist()
    }

    def evaluated(*overrides: str) -> set[int]:
        config = make_config(prepared, *overrides)
        return {int(u) for batch in evaluation_batches(config, manifest, "test") for u in batch.users}

    assert evaluated() == set(last_action)
    assert evaluated("sequence.target_actions=[save]") == {u for u, a in last_action.items() if a == SAVE}


def test_an_unknown_action(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    config = make_config(prepared, "sequence.target_actions=[streem]")
    with pytest.raises(ConfigError, match=r"'streem', which is no action of the prepared set; did you mean stream"):
        make_plan(config)
