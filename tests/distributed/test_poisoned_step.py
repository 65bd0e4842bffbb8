"""A poisoned micro-batch of one worker is left out by all alike, on every engine; or it ends or rewinds the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from worker_processes import Ended, column, run_workers

from genrec.config import ExperimentConfig

STEPS, POISONED_STEP = 12, 5
ENGINES = {
    "torch": "engine={name: torch}",
    "zero0": "engine.zero_stage=0",
    "zero2": "engine.zero_stage=2",
    "zero3": "engine.zero_stage=3",
}
# Four micro-batches a step: part 1 of step 5 belongs to worker 1 alone.
POISONED_ID = (0, 0, 4 * POISONED_STEP + 1)
POISON = f"""
import dataclasses
from genrec.models.base import SequenceModel
forward = SequenceModel.forward
def poisoned(self, batch):
    loss = forward(self, batch)
    if tuple(batch.micro_batch_id) == {POISONED_ID} and self.training:
        loss = dataclasses.replace(loss, loss_sum=loss.loss_sum * float("inf"))
    return loss
SequenceModel.forward = poisoned
"""


def config_of(make_config, prepared: Path, name: str, engine: str, policy: str) -> ExperimentConfig:
    return make_config(
        prepared,
        ENGINES[engine],
        f"name={name}",
        f"faults.on_poisoned_step={policy}",
        "cluster.workers=2",
        f"train.max_steps={STEPS}",
        "train.log_every_steps=1",
        "train.checkpoint_every_steps=4",
        "batch={tokens_per_step: 128, micro_batches_per_step: 4, steps_per_block: 2}",
        "model={name: sasrec, dim: 16, num_layers: 1, num_heads: 2, dropout: 0.2}",
        "optimizer={lr: 0.01, weight_decay: 0.1, gradient_clipping: 0.5}",
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_prepared) -> Path:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 12)).tolist() for _ in range(400)]
    return write_prepared(tmp_path_factory.mktemp("poison") / "set", sequences, num_items=60)


@pytest.fixture(scope="module")
def runs(prepared, make_config) -> tuple[dict[str, ExperimentConfig], list[Ended]]:
    """All engines with `skip`, one with `rewind`, and last, because it fails, one with `stop`: in one start of
    processes."""
    skipping = {engine: config_of(make_config, prepared, f"skip-{engine}", engine, "skip") for engine in ENGINES}
    others = {policy: config_of(make_config, prepared, policy, "torch", policy) for policy in ("rewind", "stop")}
    configs = skipping | others
    return configs, run_workers(list(configs.values()), 2, prelude=POISON)


def poisoned_lines(config: ExperimentConfig) -> list[dict]:
    path = Path(config.runs_dir) / config.name / "poisoned.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_poisoned_micro_batch_is_written_down_by_name(runs, engine: str) -> None:
    (line,) = poisoned_lines(runs[0][engine])
    assert (line["step"], line["policy"]) == (POISONED_STEP, "skip")
    assert [tuple(part["id"]) for part in line["micro_batches"]] == [(0, 0, 4 * POISONED_STEP + p) for p in range(4)]
    assert [isinstance(part["loss"], float) for part in line["micro_batches"]] == [True, False, True, True]
    assert line["gradient_norm"] in ("nan", "inf")


@pytest.mark.parametrize("engine", ["zero0", "zero2", "zero3"])
def test_every_engine_leaves_the_same_step_out(runs, engine: str) -> None:
    expected, curve = column(runs[0]["torch"], "loss"), column(runs[0][engine], "loss")
    # Step 5 (the sixth) has no line, because nothing was trained.
    assert list(expected) == list(curve) == [step for step in range(1, STEPS + 1) if step != POISONED_STEP + 1]
    np.testing.assert_allclose(list(curve.values()), list(expected.values()), rtol=1e-5)
    norms, curve_norms = column(runs[0]["torch"], "gradient_norm"), column(runs[0][engine], "gradient_norm")
    np.testing.assert_allclose(list(curve_norms.values()), list(norms.values()), rtol=1e-4)


def test_rewind_goes_back_to_the_checkpoint_and_leaves_the_step_out(runs) -> None:
    config = runs[0]["rewind"]
    (line,) = poisoned_lines(config)
    assert (line["step"], line["policy"]) == (POISONED_STEP, "rewind")
    records = (Path(config.runs_dir) / config.name / "metrics.jsonl").read_text().splitlines()
    trained = [r["step"] for r in map(json.loads, records) if r["kind"] == "train"]
    assert trained == [1, 2, 3, 4, 5, 5, 7, 8, 9, 10, 11, 12]  # back to the checkpoint before step 4, without step 5
    expected, curve = column(runs[0]["torch"], "loss"), column(config, "loss")
    np.testing.assert_allclose(list(curve.values()), list(expected.values()), rtol=1e-5)


def test_stop_ends_every_worker_with_the_same_sentence(runs) -> None:
    sentence = f"The loss of micro-batch {POISONED_ID} in step {POISONED_STEP} is"
    for code, log in runs[1]:
        assert code == 1, log
        assert f"RunError: {sentence}" in log
