"""A run goes on with another number of micro-batches: its steps are the same, so its loss curve does not notice."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from worker_processes import column, train_in_processes

from genrec.config import ExperimentConfig
from genrec.training.resume_guard import keep_packing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIRST, CHANGE, STEPS = 4, 7, 57
OTHERS = (2, 6, 8)
ENGINES = {"torch": "engine={name: torch}", "zero2": "engine.zero_stage=2"}
TOLERANCE = 1e-5  # relative, fp32, over the 50 steps after the change


@pytest.fixture(scope="module")
def curves(tmp_path_factory, write_prepared, make_config) -> dict[str, dict[int, float]]:
    """Losses by step: `torch-straight`; `torch-8`, which went on with 8 micro-batches; the same of `zero2`."""
    folder = tmp_path_factory.mktemp("micro-batches")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(folder / "set", sequences, rows_per_group=32, num_items=60)

    def config(name: str, engine: str, parts: int, steps: int) -> ExperimentConfig:
        return make_config(
            prepared,
            ENGINES[engine],
            f"name={name}",
            "cluster.workers=2",
            f"train.max_steps={steps}",
            "train.log_every_steps=1",
            f"train.checkpoint_every_steps={CHANGE}",
            f"batch={{tokens_per_step: 384, micro_batches_per_step: {parts}, steps_per_block: 2}}",
            # Nothing is drawn for a micro-batch: dropout and negatives would be others.
            "model={name: sasrec, dim: 13, num_layers: 1, num_heads: 1, dropout: 0.0}",
            "loss={name: full-softmax}",
            "optimizer={lr: 0.003, weight_decay: 0.01, gradient_clipping: 0.5}",
            "train.evaluate_every_epochs=1000",
        )

    straight = {engine: config(f"{engine}-straight", engine, FIRST, STEPS) for engine in ENGINES}
    first = {engine: config(f"{engine}-first", engine, FIRST, CHANGE) for engine in ENGINES}
    train_in_processes([*straight.values(), *first.values()], 2, timeout_s=400)
    changed = {}
    for engine in ENGINES:
        for parts in OTHERS:
            name = f"{engine}-{parts}"
            shutil.copytree(Path(first[engine].runs_dir) / f"{engine}-first", Path(first[engine].runs_dir) / name)
            changed[name] = keep_packing(first[engine], config(name, engine, parts, STEPS))
            assert changed[name].batch.packed_parts == FIRST
    train_in_processes(list(changed.values()), 2, timeout_s=400)
    return {c.name: column(c, "loss") for c in [*straight.values(), *changed.values()]}


@pytest.mark.parametrize("parts", OTHERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_curve_goes_on(curves: dict[str, dict[int, float]], engine: str, parts: int) -> None:
    expected, found = curves[f"{engine}-straight"], curves[f"{engine}-{parts}"]
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    after = range(CHANGE + 1, STEPS + 1)
    assert expected[STEPS] < expected[CHANGE]
    np.testing.assert_allclose([found[s] for s in after], [expected[s] for s in after], rtol=TOLERANCE)
