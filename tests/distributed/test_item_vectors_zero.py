"""A model that reads item vectors learns the same with ZeRO 2 and 3, on one worker and two, nearly so in bf16."""

from pathlib import Path

import numpy as np
import prepared_sets
import pytest
from worker_processes import losses, train_in_processes

from genrec.config import ExperimentConfig
from genrec.data.schema import ITEM_VECTORS_FILE
from genrec.inference.export import read_export
from genrec.run_dir import run_dir_of

pytestmark = pytest.mark.slow

STEPS, NUM_ITEMS = 12, 40
TOLERANCE = 1e-5  # relative, fp32
BF16_TOLERANCE = 0.02
RUNS = {("torch", 1), ("torch", 2), ("zero2", 2), ("zero3", 2), ("zero2-bf16", 2), ("zero3-bf16", 2)}
ENGINES = {
    "torch": "engine={name: torch}",
    "zero2": "engine.zero_stage=2",
    "zero3": "engine.zero_stage=3",
    "zero2-bf16": "engine={zero_stage: 2, precision: bf16}",
    "zero3-bf16": "engine={zero_stage: 3, precision: bf16}",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[tuple[str, int], ExperimentConfig]:
    """With id dropout, so that its draws are under test, and a loss that looks single items up."""
    folder: Path = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 31, rng.integers(3, 12)).tolist() for _ in range(120)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=16, num_items=NUM_ITEMS)
    vectors = rng.normal(size=(NUM_ITEMS + 1, 6))
    vectors[[0, 5, 33]] = 0
    prepared_sets.give_vectors(prepared, vectors)
    configs = {
        (engine, workers): make_config(
            prepared,
            ENGINES[engine],
            f"name={engine}-{workers}",
            f"cluster.workers={workers}",
            "cluster.threads_per_worker=1",
            f"train={{max_steps: {STEPS}, log_every_steps: 1, evaluate_every_epochs: 1000}}",
            "batch={tokens_per_step: 128, micro_batches_per_step: 4, steps_per_block: 2}",
            "model={name: sasrec, dim: 12, num_layers: 1, num_heads: 1, dropout: 0.1}",
            "loss={name: sampled-softmax, num_negatives: 10}",
            "optimizer={lr: 0.01, gradient_clipping: 0.5}",
            *prepared_sets.WITH_VECTORS,
        )
        for engine, workers in RUNS
    }
    for workers in (1, 2):
        train_in_processes([config for (_, count), config in configs.items() if count == workers], workers)
    return configs


@pytest.mark.parametrize("run", sorted(RUNS - {("torch", 1)}))
def test_losses_and_exports_agree(runs: dict[tuple[str, int], ExperimentConfig], run: tuple[str, int]) -> None:
    expected = losses(runs["torch", 1])
    assert len(expected) == STEPS and expected[-1] < expected[0]
    is_bf16 = run[0].endswith("bf16")
    np.testing.assert_allclose(losses(runs[run]), expected, rtol=BF16_TOLERANCE if is_bf16 else TOLERANCE)
    alone, found = (read_export(run_dir_of(runs[key]).export_path) for key in (("torch", 1), run))
    assert found.state_dict.keys() == alone.state_dict.keys()
    assert "item_table.vectors" not in found.state_dict
    if not is_bf16:
        for name in ("item_table.weight", "item_table.projection", "item_table.missing"):
            np.testing.assert_allclose(found.state_dict[name], alone.state_dict[name], atol=1e-4)
    exported = run_dir_of(runs[run]).export_path / ITEM_VECTORS_FILE
    assert exported.samefile(Path(runs[run].data.prepared) / ITEM_VECTORS_FILE)
