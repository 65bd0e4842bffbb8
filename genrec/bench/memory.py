"""Memory of this process: what it holds, the most it held since it was asked to count anew, and a limit."""

import resource
from contextlib import suppress
from pathlib import Path

import torch

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
