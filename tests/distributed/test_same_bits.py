"""Two workers are killed and go on: in fp32, on as many workers, every loss and weight is the same to the last bit."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_processes import column, run_workers, train_in_processes

from genrec.config import ExperimentConfig
from genrec.inference.export import read_export
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint import latest_checkpoint
from genrec.training.checkpoint_store import CheckpointStore

EVERY, STEPS = 10, 150


@pytest.mark.timeout(1_000)
@pytest.mark.parametrize(
    "engine",
    ["engine={name: torch}", pytest.param("engine.zero_stage=2", marks=pytest.mark.slow)],
    ids=["torch", "zero2"],
)
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, write_prepared, make_config, engine: str) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(tmp_path / "set", sequences, rows_per_group=32, num_items=60)

    def config(name: str) -> ExperimentConfig:
        return make_config(
            prepared,
            engine,
            f"name={name}",
            "cluster.workers=2",
            f"train={{max_steps: {STEPS}, log_every_steps: 1, checkpoint_every_steps: {EVERY}}}",
            "train.evaluate_every_epochs=1000",
            "batch={tokens_per_step: 384, micro_batches_per_step: 4, steps_per_block: 2}",
            "model={name: sasrec, dim: 16, num_layers: 1, num_heads: 1, dropout: 0.2}",
            "loss={name: sampled-softmax, num_negatives: 20}",
            "optimizer={lr: 0.003, weight_decay: 0.01, gradient_clipping: 0.5}",
        )

    straight, killed = config("straight"), config("killed")
    checkpoints = CheckpointStore(run_dir_of(killed).checkpoints_path)

    def kill_all(process_ids: list[int]) -> None:
        deadline = time.monotonic() + 300
        while latest_checkpoint(checkpoints) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        for process_id in process_ids:
            os.kill(process_id, signal.SIGKILL)

    ended = run_workers([killed], 2, meanwhile=kill_all, timeout_s=400)
    assert [worker.code for worker in ended] == [-signal.SIGKILL] * 2, ended
    newest = latest_checkpoint(checkpoints)
    assert newest is not None
    resumed_at = int(newest.removeprefix("step_"))
    assert EVERY <= resumed_at < STEPS
    train_in_processes([killed, straight], 2, timeout_s=400)
    assert column(killed, "loss") == column(straight, "loss")
    assert len(column(killed, "loss")) == STEPS
    found, expected = (read_export(run_dir_of(run).export_path).state_dict for run in (killed, straight))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
