"""The average of the weights is the same with every engine, on 1 and 2 workers, and after a change of topology."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_processes import train_in_processes

from genrec.config import ExperimentConfig
from genrec.inference.export import read_export
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint_store import store_of
from genrec.training.weight_average import read_average

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HALF, STEPS = 6, 12
TOLERANCE = 1e-5  # relative, of a weight's norm; fp32
ENGINES = {"torch": "{name: torch}", "zero2": "{zero_stage: 2}", "zero3": "{zero_stage: 3}"}
WEIGHTS = ("item_table.weight", "blocks.0.expand.weight", "norm.weight")


@pytest.fixture(scope="module")
def config_of(tmp_path_factory, write_prepared, make_config):
    """`config_of(name, engine, workers, steps)`."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(tmp_path_factory.mktemp("average") / "set", sequences, num_items=60)

    def config(name: str, engine: str, workers: int, steps: int = STEPS) -> ExperimentConfig:
        return make_config(
            prepared,
            f"name={name}",
            f"engine={ENGINES[engine]}",
            f"cluster.workers={workers}",
            f"train={{max_steps: {steps}, evaluate_every_epochs: 1000, checkpoint_every_steps: {HALF}}}",
            "batch={tokens_per_step: 384, micro_batches_per_step: 4}",
            # 13 numbers a row: no weight divides evenly by 2, so ZeRO pads
            "model={name: sasrec, dim: 13, num_layers: 1, num_heads: 1, dropout: 0.2}",
            "optimizer={lr: 0.01, ema_decay: 0.7}",
        )

    return config


@pytest.fixture(scope="module")
def straight(cpu_op, config_of) -> dict[str, ExperimentConfig]:
    """`ENGINE-WORKERS` without a stop, and half a run of `zero3-2`."""
    two = {f"{engine}-2": config_of(f"{engine}-2", engine, 2) for engine in ENGINES}
    two["half"] = config_of("half", "zero3", 2, HALF)
    one = {"torch-1": config_of("torch-1", "torch", 1)}
    train_in_processes(list(two.values()), 2)
    train_in_processes(list(one.values()), 1)
    return two | one


def average_of(config: ExperimentConfig, step: int = STEPS) -> dict[str, torch.Tensor]:
    num_updates, weights = read_average(Path(store_of(config, run_dir_of(config)).path(f"step_{step:08d}")))
    assert num_updates == step
    return weights


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in WEIGHTS)


@pytest.mark.parametrize("name", ["zero2-2", "zero3-2", "torch-1"])
def test_every_engine_and_number_of_workers_agrees(straight: dict[str, ExperimentConfig], name: str) -> None:
    expected, found = average_of(straight["torch-2"]), average_of(straight[name])
    assert found.keys() == expected.keys()
    assert apart(found, expected) < TOLERANCE
    assert apart(average_of(straight["half"], HALF), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["zero2-2", "zero3-2", "torch-1"])
def test_the_average_is_exported_and_not_the_trained_weights(straight: dict[str, ExperimentConfig], name: str) -> None:
    exported = read_export(run_dir_of(straight[name]).export_path).state_dict
    assert all(torch.equal(exported[n], value) for n, value in average_of(straight[name]).items())


@pytest.mark.parametrize(("engine", "workers"), [("zero3", 2), ("torch", 1), ("zero2", 2)])
def test_a_run_that_goes_on_has_the_average_of_a_straight_one(
    straight: dict[str, ExperimentConfig], config_of, engine: str, workers: int
) -> None:
    config = config_of(f"on-with-{engine}-{workers}", engine, workers)
    shutil.copytree(run_dir_of(straight["half"]).root, run_dir_of(config).root)
    train_in_processes([config], workers)
    assert apart(average_of(config), average_of(straight["zero3-2"])) < TOLERANCE
    records = map(json.loads, run_dir_of(config).metrics_path.read_text().splitlines())
    assert [r["step"] for r in records if r["kind"] == "start"] == [0, HALF]
