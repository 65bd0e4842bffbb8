"""Evaluation on two real processes: under live ZeRO-3, by shards of the item table, and alone tell the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from worker_processes import train_in_processes

from genrec.config import ExperimentConfig
from genrec.evaluation.run_evaluation import evaluate_run
from genrec.evaluation.user_ranks import read_ranks
from genrec.run_dir import RunDir, run_dir_of

NUM_ITEMS = 400


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_prepared, make_config) -> ExperimentConfig:
    """A run of two workers whose item table is shared out in the final evaluation."""
    folder = tmp_path_factory.mktemp("shared")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, NUM_ITEMS + 1, generator.integers(1, 20)).tolist() for _ in range(150)]
    config = make_config(
        write_prepared(folder / "set", sequences, rows_per_group=32, num_items=NUM_ITEMS),
        "engine.zero_stage=3",
        "name=shared",
        "cluster.workers=2",
        "train.max_steps=4",
        "batch={tokens_per_step: 256, micro_batches_per_step: 2, steps_per_block: 2}",
        "evaluation.users_per_batch=16",
        "evaluation.max_scores_bytes=4096",
        "evaluation.shard_table_bytes=0",
    )
    train_in_processes([config], 2)
    return config


def metrics(run: RunDir) -> dict[str, dict[str, float]]:
    return {role: values["metrics"] for role, values in json.loads(run.evaluation_path.read_text()).items()}


def test_one_process_with_the_whole_table_tells_the_same(trained: ExperimentConfig, tmp_path: Path) -> None:
    run, alone = run_dir_of(trained), RunDir(tmp_path / "alone")
    shutil.copytree(run.root, alone.root)
    evaluate_run(alone, ("validation", "test"))
    assert metrics(alone) == metrics(run)
    assert (read_ranks(alone.ranks_path("test")).columns == read_ranks(run.ranks_path("test")).columns).all()


def test_live_zero_3_has_told_the_same_of_validation(trained: ExperimentConfig) -> None:
    run = run_dir_of(trained)
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    best = [line for line in lines if line["kind"] == "validation" and line["best"]][-1]
    assert best["metrics"] == pytest.approx(metrics(run)["validation"], abs=1e-12)
