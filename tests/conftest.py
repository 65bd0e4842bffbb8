"""What every test needs of its environment: no network, no usage statistics, the tools of this Python on PATH."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import prepared_sets
import pytest

from genrec.config import ExperimentConfig
from genrec.cpu_op import compile_cpu_op

# Set here, before anything is imported, so that processes started by a test inherit them.
os.environ.update(
    {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "MPLBACKEND": "Agg",
        # DeepSpeed looks for `ninja` there, and tests run the `genrec` command.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
)
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(scope="session")
def cpu_op() -> None:
    """DeepSpeed's CPU op, compiled before the processes of a test race for it."""
    compile_cpu_op(timeout_s=280.0)


@pytest.fixture(scope="session")
def write_prepared() -> Callable[..., Path]:
    """`write_prepared(folder, sequences, *, times, split, num_items, rows_per_group, num_files, string_ids)`."""
    return prepared_sets.write_prepared


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ExperimentConfig]:
    """`make_config(prepared, "section.field=value", ...)`."""
    return prepared_sets.make_config
