"""A small log and its config, made once: users walk along a ring of items, so there is something to learn."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from commands import succeed

CONFIG = """\
name: walk
data:
  source: {name: sequence-text, layout: lists, path: walks.txt}
  prepared: prepared/walks
sequence: {max_length: 20}
batch: {tokens_per_step: 512, micro_batches_per_step: 2, steps_per_block: 4}
model: {name: sasrec, dim: 16, num_layers: 1, num_heads: 1, dropout: 0.1}
loss: {name: sampled-softmax, num_negatives: 20}
optimizer: {lr: 0.01}
engine: {name: torch}
train: {max_epochs: 3, log_every_steps: 1, checkpoint_every_steps: 20}
evaluation: {ks: [1, 10], filter_seen: false}
"""


@pytest.fixture(scope="session")
def prepared_project(tmp_path_factory) -> Path:
    """A folder with a log, a config and the prepared set."""
    folder = tmp_path_factory.mktemp("project")
    generator = np.random.default_rng(0)
    starts, steps = generator.integers(0, 100, 1_000), generator.integers(1, 4, (1_000, 15))
    walks = (starts[:, None] + np.cumsum(steps, axis=1)) % 100
    (folder / "walks.txt").write_text("\n".join(f"{u} " + " ".join(map(str, w)) for u, w in enumerate(walks)))
    (folder / "walk.yaml").write_text(CONFIG)
    succeed(folder, "prepare", "walk.yaml")
    return folder


@pytest.fixture
def project(prepared_project: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may do anything with."""
    shutil.copytree(prepared_project, tmp_path / "project")
    return tmp_path / "project"
