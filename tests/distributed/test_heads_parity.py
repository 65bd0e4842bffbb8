"""Weights of targets and heads: one worker, two workers and ZeRO train the same, task by task, and measure the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from prepared_sets import set_actions, set_values
from worker_processes import column, train_in_processes

from genrec.config import ExperimentConfig

pytestmark = pytest.mark.slow  # a minute of real processes

STEPS = 12
ENGINES = {"torch": "engine={name: torch}", "zero2": "engine.zero_stage=2", "zero3": "engine.zero_stage=3"}
RUNS = [("torch", 1), ("torch", 2), ("zero2", 2), ("zero3", 2)]
LOSSES = ("loss", "loss_item", "loss_action", "loss_dwell", "gradient_norm")


@pytest.fixture(scope="module")
def curves(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[tuple[str, int], ExperimentConfig]:
    """Streams, skips and saves; skips are no targets, saves count three times, some labels are unknown."""
    folder = tmp_path_factory.mktemp("heads")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)
    set_actions(
        prepared, [generator.integers(0, 4, len(row)).tolist() for row in sequences], ("stream", "skip", "save")
    )
    seconds = [
        np.where(generator.random(len(row)) < 0.2, np.nan, generator.gamma(1, 200, len(row))) for row in sequences
    ]
    set_values(prepared, [row.tolist() for row in seconds])

    def config(engine: str, workers: int) -> ExperimentConfig:
        return make_config(
            prepared,
            ENGINES[engine],
            f"name={engine}-{workers}",
            f"cluster.workers={workers}",
            f"train.max_steps={STEPS}",
            "train.log_every_steps=1",
            "sequence.target_actions=[stream, save]",
            "loss.action_weights={save: 3, stream: 0.5}",
            "heads={action: {weight: 0.3}, dwell: {weight: 0.2}}",
            "batch={tokens_per_step: 256, micro_batches_per_step: 4, steps_per_block: 2}",
            "model={name: sasrec, dim: 16, num_layers: 1, num_heads: 2, dropout: 0.2}",
            "optimizer.lr=0.01",
        )

    runs = {key: config(*key) for key in RUNS}
    for workers in (1, 2):
        train_in_processes([c for key, c in runs.items() if key[1] == workers], workers)
    return runs


@pytest.mark.parametrize("run", RUNS[1:], ids=lambda run: f"{run[0]}-{run[1]}")
def test_every_task_trains_as_on_one_worker(curves, run: tuple[str, int]) -> None:
    for name in LOSSES:
        alone = list(column(curves["torch", 1], name).values())
        assert len(alone) == STEPS
        tolerance = 1e-4 if name == "gradient_norm" else 1e-5
        np.testing.assert_allclose(list(column(curves[run], name).values()), alone, rtol=tolerance, err_msg=name)
    assert alone[-1] != alone[0]


@pytest.mark.parametrize("run", RUNS[1:], ids=lambda run: f"{run[0]}-{run[1]}")
def test_heads_are_measured_the_same(curves, run: tuple[str, int]) -> None:
    def heads(config: ExperimentConfig) -> dict[str, float]:
        path = Path(config.runs_dir) / config.name / "evaluation.json"
        found: dict[str, float] = json.loads(path.read_text())["test"]["heads"]
        return found

    alone = heads(curves["torch", 1])
    assert {name.partition("_")[0] for name in alone} == {"action", "dwell"}
    assert heads(curves[run]) == pytest.approx(alone, rel=1e-4)
