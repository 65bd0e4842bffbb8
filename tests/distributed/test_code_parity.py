"""Models that write codes: one worker, two workers and ZeRO train the same, and find the same items meanwhile."""

import json
from pathlib import Path

import numpy as np
import pytest
from code_catalogue import random_ids
from worker_processes import column, train_in_processes

from genrec.config import ExperimentConfig

pytestmark = pytest.mark.slow  # minutes of real processes

STEPS = 8
SIZES = (6, 5, 4)
ENGINES = {"torch": "engine={name: torch}", "zero2": "engine.zero_stage=2", "zero3": "engine.zero_stage=3"}
MODELS = {
    "codes": "model={name: code-decoder, history: codes, separator: true, dim: 16, num_layers: 1, num_heads: 2}",
    "items": "model={name: code-decoder, history: items, item_ids: true, dim: 16, num_layers: 1, num_heads: 2}",
    "tiger": "model={name: tiger, dim: 16, num_layers: 1, num_heads: 2, head_dim: 8, feed_forward_dim: 32}",
}
WAYS = [("torch", 1), ("zero2", 2), ("zero3", 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[tuple[str, str, int], ExperimentConfig]:
    """Every model, every way; with dropout, tokens of users, and 61 users, who give two workers unequal shares."""
    folder = tmp_path_factory.mktemp("codes")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(4, 12)).tolist() for _ in range(61)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=16, num_items=60)
    random_ids(60, SIZES, seed=1).save(folder / "map")

    def config(model: str, engine: str, workers: int) -> ExperimentConfig:
        return make_config(
            prepared,
            ENGINES[engine],
            MODELS[model],
            f"name={model}-{engine}-{workers}",
            f"cluster.workers={workers}",
            f"train={{max_steps: {STEPS}, log_every_steps: 1}}",
            f"semantic_ids={{path: {folder / 'map'}}}",
            "inputs={users: {rows: 7, dropout: 0.2}}",
            "loss={name: full-softmax}",
            "batch={tokens_per_step: 96, micro_batches_per_step: 4, steps_per_block: 2}",
            "optimizer={lr: 0.01, gradient_clipping: 0.5}",
            "evaluation={ks: [1, 10], beam_width: 10, users_per_batch: 8}",
        )

    found = {(model, *way): config(model, *way) for model in MODELS for way in WAYS}
    for workers in (1, 2):
        train_in_processes([c for key, c in found.items() if key[2] == workers], workers)
    return found


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: f"{way[0]}-{way[1]}")
@pytest.mark.parametrize("model", MODELS)
def test_a_model_over_codes_trains_as_on_one_worker(runs, model: str, way: tuple[str, int]) -> None:
    for name, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        alone = list(column(runs[model, "torch", 1], name).values())
        assert len(alone) == STEPS
        np.testing.assert_allclose(list(column(runs[model, *way], name).values()), alone, rtol=tolerance, err_msg=name)
        assert alone[-1] != alone[0]


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: f"{way[0]}-{way[1]}")
@pytest.mark.parametrize("model", MODELS)
def test_a_beam_finds_the_same_on_sharded_weights(runs, model: str, way: tuple[str, int]) -> None:
    def validations(config: ExperimentConfig) -> list[dict[str, float]]:
        lines = (Path(config.runs_dir) / config.name / "metrics.jsonl").read_text().splitlines()
        return [record["metrics"] for record in map(json.loads, lines) if record["kind"] == "validation"]

    alone = validations(runs[model, "torch", 1])
    assert len(alone) == 2 and any(alone[-1].values())
    for one, other in zip(alone, validations(runs[model, *way]), strict=True):
        assert other == pytest.approx(one, abs=1e-6)
