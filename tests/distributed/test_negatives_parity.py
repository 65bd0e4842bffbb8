"""Negatives from the whole step: two workers have the pool that one has, and train the same; so does a learned
temperature, which ZeRO-3 must gather where it is used."""

from pathlib import Path

import numpy as np
import pytest
from worker_processes import losses, train_in_processes

from genrec.config import ExperimentConfig

STEPS = 12
ENGINES = {"torch": "engine={name: torch}", "zero3": "engine.zero_stage=3"}
LOSSES = {
    "in-batch": "loss={name: sampled-softmax, negatives: in-batch, num_negatives: 64}",
    "mixed": "loss={name: sampled-softmax, negatives: mixed, num_negatives: 64, learn_temperature: true}",
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[tuple[str, str, int], list[float]]:
    folder = tmp_path_factory.mktemp("negatives")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)

    def config(loss: str, engine: str, workers: int) -> ExperimentConfig:
        return make_config(
            prepared,
            ENGINES[engine],
            LOSSES[loss],
            f"name={loss}-{engine}-{workers}",
            f"cluster.workers={workers}",
            f"train.max_steps={STEPS}",
            "train.log_every_steps=1",
            "batch={tokens_per_step: 256, micro_batches_per_step: 4, steps_per_block: 2}",
            "model={name: sasrec, dim: 16, num_layers: 1, num_heads: 2, dropout: 0.2, l2_normalize: true}",
            "optimizer.lr=0.01",
        )

    keys = [(loss, "torch", workers) for loss in LOSSES for workers in (1, 2)] + [("mixed", "zero3", 2)]
    runs = {key: config(*key) for key in keys}
    for workers in (1, 2):
        train_in_processes([c for key, c in runs.items() if key[2] == workers], workers)
    assert all((Path(c.runs_dir) / c.name / "export").is_dir() for c in runs.values())
    return {key: losses(config) for key, config in runs.items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_two_workers_train_as_one_with_the_same_pool(curves, loss: str) -> None:
    alone = curves[loss, "torch", 1]
    assert len(alone) == STEPS
    assert alone[-1] < alone[0]
    np.testing.assert_allclose(curves[loss, "torch", 2], alone, rtol=1e-5)


def test_a_learned_temperature_is_gathered_by_zero_3(curves) -> None:
    np.testing.assert_allclose(curves["mixed", "zero3", 2], curves["mixed", "torch", 2], rtol=1e-5)
