"""One worker of two stops: each that can run writes its stacks and ends, long before a collective's time-out."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from worker_processes import column, run_workers

from genrec.config import ExperimentConfig
from genrec.training.watchdog import EXIT_CODE

STEP_TIMEOUT_S = 5

# Worker 1 stops before it has computed the third step, so worker 0 waits in the sum of the gradients.
SLEEP = """
import os, threading
from genrec.models.base import SequenceModel
forward = SequenceModel.forward
def stands_still(self, batch):
    if os.environ["RANK"] == "1" and tuple(batch.micro_batch_id) == (0, 0, 5):
        threading.Event().wait()
    return forward(self, batch)
SequenceModel.forward = stands_still
"""


@pytest.fixture
def config(tmp_path, write_prepared, make_config) -> ExperimentConfig:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 12)).tolist() for _ in range(400)]
    return make_config(
        write_prepared(tmp_path / "set", sequences, num_items=60),
        "engine={name: torch}",
        "cluster.workers=2",
        "batch={tokens_per_step: 64, micro_batches_per_step: 2}",
        "train={max_steps: 1000000, log_every_steps: 1, evaluate_every_epochs: 1000000}",
        f"faults.step_timeout_s={STEP_TIMEOUT_S}",
    )


def stacks_of(config: ExperimentConfig, rank: int) -> Path:
    return Path(config.runs_dir) / config.name / "stacks" / f"rank_{rank:05d}.txt"


def wait_until(condition, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_worker_that_waits_for_ever_and_the_one_that_waits_for_it_write_their_stacks(config) -> None:
    started_at = time.monotonic()
    ended = run_workers([config], 2, prelude=SLEEP, timeout_s=120)
    assert time.monotonic() - started_at < 110
    assert [worker.code for worker in ended] == [EXIT_CODE, EXIT_CODE], ended
    assert list(column(config, "loss")) == [1, 2]
    assert "in stands_still" in stacks_of(config, 1).read_text()
    assert "in all_reduce" in stacks_of(config, 0).read_text()


def test_a_stopped_process_is_noticed_by_the_other(config) -> None:
    metrics = Path(config.runs_dir) / config.name / "metrics.jsonl"

    def stop_worker_1(process_ids: list[int]) -> None:
        wait_until(lambda: metrics.is_file() and len(column(config, "loss")) > 2)
        os.kill(process_ids[1], signal.SIGSTOP)
        wait_until(lambda: stacks_of(config, 0).is_file() and "in all_reduce" in stacks_of(config, 0).read_text())
        os.kill(process_ids[1], signal.SIGKILL)  # as a launcher does with the group of a worker that has ended

    ended = run_workers([config], 2, meanwhile=stop_worker_1, timeout_s=120)
    assert [worker.code for worker in ended] == [EXIT_CODE, -signal.SIGKILL], ended
