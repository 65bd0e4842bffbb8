"""A prepared set of 40 users and its small config."""

from pathlib import Path

import numpy as np
import pytest

from genrec.config import ExperimentConfig


@pytest.fixture
def base(tmp_path: Path, write_prepared, make_config) -> ExperimentConfig:
    generator = np.random.default_rng(0)
    sequences = generator.integers(1, 31, (40, 8)).tolist()
    prepared = write_prepared(tmp_path / "prepared", sequences, num_items=30)
    return make_config(prepared, "train={max_epochs: 3, log_every_steps: 1}", "engine={name: torch}")
