"""Memory of this process: what it holds, the most it held since it was asked to count anew, and a limit."""

import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genrec.training.engine import Engine
from genrec.training.optim import MixedOptimizer

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryWatch:
    """Counts from when it is made: on a CPU resident memory, on a GPU what torch's allocator holds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.baseline_bytes = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError):  # where the mark cannot be reset, it holds for the whole life of the process
            CLEAR_REFS.write_text("5", encoding="ascii")
        self.baseline_bytes = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most that was held beyond the baseline until now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.baseline_bytes
        peak = _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak - self.baseline_bytes


class StateBytes(NamedTuple):
    """What a worker keeps between two steps, after the first: bytes of its weights, and of optimizer state.

    Optimizer state are the moments, and the master weights where the engine keeps any beside the model's own.
    """

    weights: int
    optimizer: int


def state_bytes(engine: Engine) -> StateBytes:
    """Counted on the tensors themselves, each storage once: neither gradients nor anything that is gone is in it."""
    # Under ZeRO-3 a weight is empty, and `ds_tensor` is this worker's part of it; small weights are whole besides.
    weights = [tensor for p in engine.model.parameters() for tensor in (p, getattr(p, "ds_tensor", p))]
    optimizer = engine.inner_optimizer
    kept = [*optimizer.state, *(value for moments in optimizer.state.values() for value in moments.values())]
    if isinstance(optimizer, MixedOptimizer):
        kept += optimizer.accumulators.values()
    of_weights = _storages(weights)
    of_optimizer = {key: size for key, size in _storages(kept).items() if key not in of_weights}
    return StateBytes(sum(of_weights.values()), sum(of_optimizer.values()))


def _storages(values: Iterable[object]) -> dict[int, int]:
    """Bytes of the storages of those that are tensors, by address."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def limit_memory(num_bytes: int) -> None:
    """From now on this process may take `num_bytes` more; what asks for more gets a MemoryError or torch's own."""
    limit = _status_bytes("VmData") + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _status_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    if not STATUS.is_file():
        return 0
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
