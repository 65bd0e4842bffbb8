"""Muon and row-wise Adagrad on 1 and 2 workers, with every ZeRO stage, before and after a change: one curve.

A step of every run is poisoned and left out, so that is the same everywhere too.
"""

import json
import shutil

import numpy as np
import pytest
from worker_processes import column, run_workers

from genrec.config import ExperimentConfig
from genrec.run_dir import run_dir_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HALF, STEPS, POISONED_STEP = 6, 12, 2
ENGINES = {
    "torch": "{name: torch}",
    "zero0": "{zero_stage: 0}",
    "zero1": "{zero_stage: 1}",
    "zero2": "{zero_stage: 2}",
    "zero3": "{zero_stage: 3}",
    "zero0-bf16": "{zero_stage: 0, precision: bf16}",
    "zero2-bf16": "{zero_stage: 2, precision: bf16}",
    "zero3-bf16": "{zero_stage: 3, precision: bf16}",
}
OPTIMIZERS = {
    "muon": "{name: muon, lr: 0.01, matrix_lr: 0.02, weight_decay: 0.1, gradient_clipping: 0.5, warmup_steps: 2}",
    "rowwise-adagrad": "{lr: 0.01, table: {name: rowwise-adagrad, lr: 0.1}, weight_decay: 0.1, warmup_steps: 2}",
}
# Relative, of the loss. Muon's orthogonal factor is computed in bf16, where a last bit may tip over to the next number.
TOLERANCES = {"muon": 3e-5, "rowwise-adagrad": 1e-5}
BF16_TOLERANCE = 1e-2
# Four micro-batches a step, three steps an epoch: part 1 belongs to worker 1 alone.
POISON = f"""
import dataclasses
from genrec.models.base import SequenceModel
forward = SequenceModel.forward
def poisoned(self, batch):
    loss = forward(self, batch)
    if tuple(batch.micro_batch_id) == (0, 0, {4 * POISONED_STEP + 1}) and self.training:
        loss = dataclasses.replace(loss, loss_sum=loss.loss_sum * float("inf"))
    return loss
SequenceModel.forward = poisoned
"""


def run_all(configs: list[ExperimentConfig], workers: int) -> None:
    ended = run_workers(configs, workers, prelude=POISON, timeout_s=600)
    assert not any(worker.code for worker in ended), "\n".join(worker.log for worker in ended)


@pytest.fixture(scope="module", params=list(OPTIMIZERS))
def optimizer(request) -> str:
    """An optimizer's name."""
    return request.param


@pytest.fixture(scope="module")
def config_of(tmp_path_factory, write_prepared, make_config, optimizer: str):
    """`config_of(name, engine, workers, steps)` with the optimizer."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 20)).tolist() for _ in range(200)]
    prepared = write_prepared(tmp_path_factory.mktemp(optimizer) / "set", sequences, num_items=60)

    def config(name: str, engine: str, workers: int, steps: int = STEPS) -> ExperimentConfig:
        return make_config(
            prepared,
            f"name={name}",
            f"engine={ENGINES[engine]}",
            f"cluster.workers={workers}",
            f"train={{max_steps: {steps}, log_every_steps: 1, checkpoint_every_steps: {HALF}}}",
            "train.evaluate_every_epochs=1000",
            "faults.on_poisoned_step=skip",
            "batch={tokens_per_step: 384, micro_batches_per_step: 4}",
            # 13 numbers a row: no weight divides evenly by 2, so ZeRO pads, and parts begin inside of rows
            "model={name: sasrec, dim: 13, num_layers: 1, num_heads: 1, dropout: 0.2}",
            f"optimizer={OPTIMIZERS[optimizer]}",
        )

    return config


@pytest.fixture(scope="module")
def curves(cpu_op, config_of) -> dict[str, dict[int, float]]:
    """Losses by step: `ENGINE-WORKERS` without a stop, and `OLD-NEW-1` for runs of two workers that go on with one."""
    two = [config_of(f"{engine}-2", engine, 2) for engine in ENGINES]
    run_all(two, 2)
    one = [config_of("torch-1", "torch", 1)]
    # One run with DeepSpeed, the last: a process that is alone cannot start it twice.
    one += [from_half(config_of, old, new, 1) for old, new in (("zero3", "torch"), ("zero3", "zero2"))]
    run_all(one, 1)
    return {config.name: column(config, "loss") for config in [*two, *one]}


def from_half(config_of, old: str, new: str, workers: int) -> ExperimentConfig:
    """A run that goes on with the engine `new` from the first half of that of two workers with `old`."""
    config = config_of(f"{old}-{new}-{workers}", new, workers)
    shutil.copytree(run_dir_of(config_of(f"{old}-2", old, 2)).root, run_dir_of(config).root)
    shutil.rmtree(run_dir_of(config).checkpoints_path / f"step_{STEPS:08d}")
    return config


def assert_equal(found: dict[int, float], expected: dict[int, float], optimizer: str) -> None:
    # The poisoned step has no line, because nothing was trained.
    assert sorted(found) == sorted(expected) == [step for step in range(1, STEPS + 1) if step != POISONED_STEP + 1]
    assert expected[STEPS] < 0.99 * expected[1]
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=TOLERANCES[optimizer])


@pytest.mark.parametrize("name", ["zero0-2", "zero1-2", "zero2-2", "zero3-2", "torch-1"])
def test_every_engine_and_number_of_workers_agrees(curves, optimizer: str, name: str) -> None:
    assert_equal(curves[name], curves["torch-2"], optimizer)


@pytest.mark.parametrize("name", ["zero0-bf16-2", "zero2-bf16-2", "zero3-bf16-2"])
def test_bf16_is_near(curves, name: str) -> None:
    found, expected = curves[name], curves["torch-2"]
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=BF16_TOLERANCE)


@pytest.mark.parametrize("name", ["zero3-torch-1", "zero3-zero2-1"])
def test_a_run_goes_on_with_fewer_workers_and_another_engine(curves, optimizer: str, name: str) -> None:
    assert_equal(curves[name], curves["torch-2"], optimizer)


def test_a_run_goes_on_where_it_was(curves, config_of, optimizer: str) -> None:
    changes = [("zero0", "zero0"), ("zero1", "zero1"), ("zero3", "zero3"), ("torch", "zero3"), ("zero2", "zero0")]
    resumed = [from_half(config_of, old, new, 2) for old, new in changes]
    run_all(resumed, 2)
    for config in resumed:
        records = [json.loads(line) for line in run_dir_of(config).metrics_path.read_text().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "start"] == [0, HALF]
        assert_equal(column(config, "loss"), curves["torch-2"], optimizer)
