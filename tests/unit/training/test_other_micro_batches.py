"""A run goes on with another number of micro-batches, and back: the steps are those that it was begun with."""

import time
from pathlib import Path

import numpy as np
import pytest

from genrec.config import ExperimentConfig
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.errors import RunError
from genrec.run_dir import RunDir, load_saved_config
from genrec.training.local import fit
from genrec.training.start import open_run_directory
from genrec.training.window_log import trained_windows

FIRST = 2


def goes_on(config: ExperimentConfig) -> tuple[RunDir, list[str]]:
    said: list[str] = []
    run = open_run_directory(config, fresh=False, say=said.append, allow_change=["train.max_steps"])
    fit(config, run, time.time())
    return run, said


def windows_of(config: ExperimentConfig, end: int) -> dict[int, list[tuple[int, int]]]:
    """(user, first event) of the windows of every step, as the first command planned them."""
    span = {"start_step": 0, "end_step": end, "rank": 0, "workers": 1}
    found: dict[int, list[tuple[int, int]]] = {}
    for place, batch in worker_batches(local_tables(make_plan(config), **span), **span, parts=FIRST):
        found.setdefault(place.step, []).extend(zip(batch.users.tolist(), batch.starts.tolist(), strict=True))
    return {step: sorted(windows) for step, windows in found.items()}


def test_from_two_to_four_to_one_and_back(tmp_path: Path, write_prepared, make_config) -> None:
    generator = np.random.default_rng(1)
    sequences = [generator.integers(1, 40, generator.integers(2, 30)).tolist() for _ in range(120)]
    prepared = write_prepared(tmp_path / "set", sequences, rows_per_group=20, num_items=40)

    def config(parts: int, steps: int, *overrides: str) -> ExperimentConfig:
        return make_config(
            prepared,
            "engine={name: torch}",
            f"batch={{tokens_per_step: 64, micro_batches_per_step: {parts}}}",
            "sequence.window=random",
            f"train={{max_steps: {steps}, checkpoint_every_steps: 4, evaluate_every_epochs: 1000}}",
            "tracking.log_windows=true",
            f"runs_dir={tmp_path / 'runs'}",
            *overrides,
        )

    goes_on(config(FIRST, 6))
    packed = []
    for parts, steps in ((4, 11), (1, 16), (FIRST, 20)):
        run, said = goes_on(config(parts, steps))
        assert any(text.startswith("Changed: batch.micro_batches_per_step: ") for text in said)
        packed.append(load_saved_config(run.config_path).batch.packed_parts)
    assert packed == [FIRST, FIRST, None]
    trained: dict[int, list[tuple[int, int]]] = {}
    num_parts: dict[int, int] = {}
    for line in trained_windows(run):
        trained.setdefault(line["step"], []).extend(zip(line["users"], line["starts"], strict=True))
        num_parts[line["step"]] = num_parts.get(line["step"], 0) + 1
    assert list(num_parts.values()) == [2] * 6 + [4] * 5 + [1] * 5 + [2] * 4
    assert {step: sorted(windows) for step, windows in trained.items()} == windows_of(config(FIRST, 20), 20)
    with pytest.raises(RunError, match=r"batch\.packed_parts: 2 -> 4|batch\.packed_parts: None -> 4"):
        goes_on(config(4, 24, "batch.packed_parts=4"))
