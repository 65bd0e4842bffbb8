"""DeepSpeed before and after an engine is made of it: its package, the C++ ops that it compiles, its process groups."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genrec.cpu_op import op_folder_locked
from genrec.errors import ConfigError


def import_deepspeed(device: torch.device) -> Any:
    """The package, ready for `device`; raises ConfigError when it cannot be imported here."""
    # DeepSpeed builds C++ ops with the `ninja` executable that it looks for on PATH; a worker's PATH may lack the
    # virtual environment that holds it.
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            "engine.name = 'deepspeed' needs the deepspeed package, which cannot be imported here "
            f"({error}); install it, or train with engine.name=torch."
        ) from error
    if device.type == "cpu":
        _load_cpu_op(deepspeed)
    return deepspeed


def _load_cpu_op(deepspeed: Any) -> None:
    """Loads the op that `deepspeed.initialize` would load, which finds it loaded: it has no lock that ends with us."""
    builder = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return
    with op_folder_locked():
        builder.load(verbose=False)


def load_adam_op(deepspeed: Any) -> None:
    """Compiles and loads the optimizer in host memory, which `deepspeed.initialize` then finds loaded."""
    builder = deepspeed.ops.op_builder.CPUAdamBuilder()
    with op_folder_locked(builder.NAME):
        builder.load(verbose=False)


def limit_waits(engine: Any, timeout_s: float) -> None:
    """DeepSpeed makes process groups of its own, with torch's default time-out instead of that of the run."""
    for group in {engine.data_parallel_group, engine.seq_data_parallel_group} - {None}:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)
