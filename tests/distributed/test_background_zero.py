"""A background validation of what any engine has saved measures and exports what its workers do inline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_processes import train_in_processes

from genrec.config import ExperimentConfig
from genrec.inference.export import read_export
from genrec.run_dir import RunDir, run_dir_of
from genrec.training.checkpoint_list import StoredCheckpoint
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.checkpoint_validation import validate_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

ENGINES = {
    "torch": "{name: torch}",
    "torch-bf16": "{name: torch, precision: bf16}",
    "zero0": "{zero_stage: 0}",
    "zero1": "{zero_stage: 1}",
    "zero2-bf16": "{zero_stage: 2, precision: bf16}",
    "zero3": "{zero_stage: 3}",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[str, ExperimentConfig]:
    """A run of two workers with each engine, and all of its checkpoints."""
    folder = tmp_path_factory.mktemp("zero")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(4, 20)).tolist() for _ in range(201)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)
    configs = {
        name: make_config(
            prepared,
            f"name={name}",
            f"engine={engine}",
            "batch={tokens_per_step: 400, micro_batches_per_step: 2}",
            "train={max_epochs: 3, keep_checkpoints: 3}",
            "optimizer.lr=0.02",
            "cluster={workers: 2, threads_per_worker: 1}",
            "evaluation.users_per_batch=32",
        )
        for name, engine in ENGINES.items()
    }
    train_in_processes(list(configs.values()), 2, timeout_s=800)
    return configs


@pytest.mark.parametrize("engine", ENGINES)
def test_inline_and_background_agree(runs: dict[str, ExperimentConfig], engine: str, tmp_path: Path) -> None:
    trained = run_dir_of(runs[engine])
    shutil.copytree(trained.root, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    shutil.rmtree(run.export_path)
    records = map(json.loads, trained.metrics_path.read_text().splitlines())
    expected = {record["step"]: record["metrics"] for record in records if record["kind"] == "validation"}
    assert len(expected) == 3
    store = CheckpointStore(run.checkpoints_path)
    results = [
        validate_checkpoint(StoredCheckpoint(store, name), run, torch.device("cpu"), 600.0) for name in store.names()
    ]
    assert [result.problem for result in results] == [None] * 3
    assert {result.step: result.metrics for result in results} == expected
    mine, theirs = read_export(run.export_path), read_export(trained.export_path)
    assert mine.info == theirs.info
    assert all(torch.equal(mine.state_dict[name], theirs.state_dict[name]) for name in theirs.state_dict)
