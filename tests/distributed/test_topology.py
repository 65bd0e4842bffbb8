"""A run goes on with other workers, another ZeRO stage or another engine, and its loss curve does not notice."""

import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from worker_processes import column, train_in_processes

from genrec.config import ExperimentConfig

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


@pytest.fixture(scope="module")
def curves(tmp_path_factory, cpu_op, write_prepared, make_config) -> dict[str, dict[int, float]]:
    """Losses by step: `straight`, and each change under the names of its two topologies."""
    folder = tmp_path_factory.mktemp("topology")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)

    def config(name: str, topology: Topology, steps: int) -> ExperimentConfig:
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
    run_all(list(second.values()))
    return {name: column(c, "loss") for name, c in {"straight": straight, **second}.items()}


def run_all(configs: list[ExperimentConfig]) -> None:
    """Every config with its workers; those with as many share their processes."""
    ordered = sorted(configs, key=lambda config: config.cluster.workers)
    for workers, group in groupby(ordered, key=lambda config: config.cluster.workers):
        train_in_processes(list(group), workers)


def _names() -> Iterator[str]:
    yield from (f"{name_of(before)}-then-{name_of(after)}" for before, after in CHANGES)


@pytest.mark.parametrize("name", list(_names()))
def test_the_curve_goes_on(curves: dict[str, dict[int, float]], name: str) -> None:
    expected, found = curves["straight"], curves[name]
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    after = range(CHANGE + 1, STEPS + 1)
    assert expected[STEPS] < expected[CHANGE]
    np.testing.assert_allclose([found[s] for s in after], [expected[s] for s in after], rtol=TOLERANCE)
