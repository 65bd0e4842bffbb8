"""A run goes on with other workers, another ZeRO stage or another engine, and its loss curve does not notice.

The same checkpoints are exported, and other runs of every engine begin with the weights of one of them.
"""

import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_processes import column, train_in_processes

from genrec.config import ExperimentConfig
from genrec.inference.export import read_export
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint_list import StoredCheckpoint, find_checkpoint
from genrec.training.checkpoint_store import store_of
from genrec.training.checkpoint_tools import compare_checkpoints, export_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]  # a dozen process groups, each with DeepSpeed's start

CHANGE, STEPS = 10, 60
TOLERANCE = 1e-5  # relative, fp32, over the 50 steps after the change

Topology = tuple[int, str]
CHANGES: tuple[tuple[Topology, Topology], ...] = (
    ((2, "zero2"), (1, "zero2")),
    ((1, "zero2"), (2, "zero2")),
    ((2, "zero2"), (3, "zero2")),
    ((2, "zero1"), (2, "zero3")),
    ((2, "zero3"), (2, "zero1")),
    ((2, "zero0"), (2, "zero2")),
    ((2, "zero2"), (2, "zero0")),
    ((2, "zero3"), (3, "zero3")),
    ((2, "zero3"), (1, "torch")),
    ((1, "torch"), (2, "zero3")),
)


def name_of(topology: Topology) -> str:
    return f"{topology[1]}-on-{topology[0]}"


WARM: tuple[Topology, ...] = ((1, "torch"), (2, "zero0"), (2, "zero2"), (2, "zero3"))
SOURCE: Topology = (2, "zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[str, ExperimentConfig]:
    """`straight`; each topology's first steps under its name; each change under both names; `warm-` starts."""
    folder = tmp_path_factory.mktemp("topology")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)

    def config(name: str, topology: Topology, steps: int, *more: str) -> ExperimentConfig:
        workers, engine = topology
        stage = f"engine.zero_stage={engine[-1]}" if engine != "torch" else "engine={name: torch}"
        return make_config(
            prepared,
            stage,
            f"name={name}",
            f"cluster.workers={workers}",
            f"train.max_steps={steps}",
            "train.log_every_steps=1",
            f"train.checkpoint_every_steps={CHANGE}",
            "batch={tokens_per_step: 384, micro_batches_per_step: 6, steps_per_block: 2}",
            # 13 items a row: no weight divides evenly by 2 or 3, so ZeRO pads
            "model={name: sasrec, dim: 13, num_layers: 1, num_heads: 1, dropout: 0.2}",
            "loss={name: sampled-softmax, num_negatives: 20}",
            "optimizer={lr: 0.003, weight_decay: 0.01, gradient_clipping: 0.5}",
            "train.evaluate_every_epochs=1000",  # once, at the end: the run's own export is of the last checkpoint
            *more,
        )

    first = {topology: config(name_of(topology), topology, CHANGE) for topology, _ in CHANGES}
    straight = config("straight", (2, "zero2"), STEPS)
    run_all([straight, *first.values()])
    second = {}
    for before, after in CHANGES:
        name = f"{name_of(before)}-then-{name_of(after)}"
        changed = config(name, after, STEPS)
        shutil.copytree(Path(first[before].runs_dir) / name_of(before), Path(changed.runs_dir) / name)
        second[name] = changed
    source = Path(first[SOURCE].runs_dir) / name_of(SOURCE)
    warm = {
        name: config(name, topology, 2, f"train.start_from={source}")
        for name, topology in ((f"warm-{name_of(topology)}", topology) for topology in WARM)
    }
    run_all([*second.values(), *warm.values()])
    return {c.name: c for c in [straight, *first.values(), *second.values(), *warm.values()]}


@pytest.fixture(scope="module")
def curves(runs: dict[str, ExperimentConfig]) -> dict[str, dict[int, float]]:
    """Losses by step of every run."""
    return {name: column(config, "loss") for name, config in runs.items()}


def run_all(configs: list[ExperimentConfig]) -> None:
    """Every config with its workers; those with as many share their processes."""
    ordered = sorted(configs, key=lambda config: config.cluster.workers)
    for workers, group in groupby(ordered, key=lambda config: config.cluster.workers):
        train_in_processes(list(group), workers, timeout_s=900)


def _names() -> Iterator[str]:
    yield from (f"{name_of(before)}-then-{name_of(after)}" for before, after in CHANGES)


@pytest.mark.parametrize("name", list(_names()))
def test_the_curve_goes_on(curves: dict[str, dict[int, float]], name: str) -> None:
    expected, found = curves["straight"], curves[name]
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    after = range(CHANGE + 1, STEPS + 1)
    assert expected[STEPS] < expected[CHANGE]
    np.testing.assert_allclose([found[s] for s in after], [expected[s] for s in after], rtol=TOLERANCE)


def latest(config: ExperimentConfig) -> StoredCheckpoint:
    return find_checkpoint(store_of(config, run_dir_of(config)), "latest")


@pytest.mark.parametrize("name", sorted({name_of(topology) for topology, _ in CHANGES}))
def test_a_checkpoint_of_any_topology_can_be_served(
    runs: dict[str, ExperimentConfig], name: str, tmp_path: Path
) -> None:
    run = run_dir_of(runs[name])
    checkpoint = latest(runs[name])
    export_checkpoint(checkpoint, run, runs[name], tmp_path / "export")
    exported, published = read_export(tmp_path / "export"), read_export(run.export_path)
    assert exported.info == published.info
    assert exported.state_dict.keys() == published.state_dict.keys()
    assert all(torch.equal(exported.state_dict[name], weight) for name, weight in published.state_dict.items())


def test_checkpoints_of_two_topologies_are_compared(runs: dict[str, ExperimentConfig]) -> None:
    found = compare_checkpoints(latest(runs["zero3-on-2"]), latest(runs["torch-on-1"]))
    assert "cluster.workers: 2 -> 1" in found.settings
    assert not found.only_first
    assert not found.only_second
    # Not every weight: the gradient of the keys' bias is 0 but for rounding, which AdamW blows up.
    (items,) = (weight for weight in found.weights if weight.name == "item_table.weight")
    assert items.relative is not None
    assert items.relative < TOLERANCE


def test_every_engine_begins_with_the_given_weights(curves: dict[str, dict[int, float]]) -> None:
    losses = [[curves[f"warm-{name_of(topology)}"][step] for step in (1, 2)] for topology in WARM]
    np.testing.assert_allclose(losses, [losses[0]] * len(WARM), rtol=TOLERANCE)
    assert losses[0][0] < 0.999 * curves["straight"][1]
