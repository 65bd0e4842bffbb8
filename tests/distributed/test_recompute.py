"""Recomputing the blocks of a decoder changes nothing about what is learned, also where ZeRO-3 shares out the weights.

DeepSpeed leaves a weight of up to 100,000 elements whole on every worker, so the matrices here are larger.
"""

import numpy as np
import pytest
from worker_processes import losses, train_in_processes

STEPS = 4
TOLERANCE = 1e-6  # relative, fp32: the same arithmetic, done twice


@pytest.mark.slow
def test_recomputed_blocks_learn_the_same(tmp_path, cpu_op, write_prepared, make_config) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(100)]
    prepared = write_prepared(tmp_path / "set", sequences, rows_per_group=32, num_items=60)
    configs = [
        make_config(
            prepared,
            "engine.zero_stage=3",
            f"name={recompute}",
            "cluster.workers=2",
            f"train.max_steps={STEPS}",
            "train.log_every_steps=1",
            "batch={tokens_per_step: 256, micro_batches_per_step: 4, steps_per_block: 2}",
            f"model={{name: decoder, dim: 256, num_layers: 2, num_heads: 2, dropout: 0.2, recompute: {recompute}}}",
            "loss={name: full-softmax}",
            "optimizer.lr=0.001",
        )
        for recompute in ("none", "block")
    ]
    train_in_processes(configs, 2)
    kept, recomputed = (losses(config) for config in configs)
    assert len(kept) == STEPS
    np.testing.assert_allclose(recomputed, kept, rtol=TOLERANCE)
