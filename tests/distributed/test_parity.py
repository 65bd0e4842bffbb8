"""The same run on 1 and 2 workers, with every ZeRO stage and with plain PyTorch, gives the same loss curve."""

from pathlib import Path

import numpy as np
import pytest
from worker_processes import column, losses, train_in_processes

from genrec.config import ExperimentConfig

STEPS = 20
TOLERANCE = 1e-5  # relative, fp32, over 20 steps

ENGINES = {
    "torch": "engine={name: torch}",
    "zero0": "engine.zero_stage=0",
    "zero1": "engine.zero_stage=1",
    "zero2": "engine.zero_stage=2",
    "zero3": "engine.zero_stage=3",
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[tuple[str, int], ExperimentConfig]:
    """Every engine on 2 workers, two engines on 1; the model has dropout, so its seeding is under test too."""
    folder = tmp_path_factory.mktemp("parity")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)

    def config(engine: str, workers: int) -> ExperimentConfig:
        return make_config(
            prepared,
            ENGINES[engine],
            f"name={engine}-{workers}",
            f"cluster.workers={workers}",
            f"train.max_steps={STEPS}",
            "train.log_every_steps=1",
            "batch={tokens_per_step: 256, micro_batches_per_step: 4, steps_per_block: 2}",
            "model={name: sasrec, dim: 16, num_layers: 2, num_heads: 2, dropout: 0.2}",
            "loss={name: sampled-softmax, num_negatives: 20}",
            "optimizer={lr: 0.01, warmup_steps: 3, schedule: cosine, gradient_clipping: 0.5}",
        )

    runs = {(engine, 2): config(engine, 2) for engine in ENGINES}
    runs |= {(engine, 1): config(engine, 1) for engine in ("torch", "zero2")}
    for workers in (1, 2):
        train_in_processes([c for (_, w), c in runs.items() if w == workers], workers)
    return runs


@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2", "zero3"])
def test_every_zero_stage_agrees_with_plain_pytorch(curves, engine: str) -> None:
    expected = losses(curves["torch", 2])
    assert len(expected) == STEPS
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses(curves[engine, 2]), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("engine", ["torch", "zero2"])
def test_one_worker_agrees_with_two(curves, engine: str) -> None:
    np.testing.assert_allclose(losses(curves[engine, 1]), losses(curves[engine, 2]), rtol=TOLERANCE)


def test_the_gradient_norm_is_that_of_the_whole_step(curves) -> None:
    expected = list(column(curves["torch", 1], "gradient_norm").values())
    np.testing.assert_allclose(list(column(curves["zero2", 2], "gradient_norm").values()), expected, rtol=1e-4)


def test_all_runs_reach_the_same_metrics(curves) -> None:
    texts = {key: (Path(c.runs_dir) / c.name / "evaluation.json").is_file() for key, c in curves.items()}
    assert all(texts.values()), texts
