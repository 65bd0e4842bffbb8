"""What machine this is: processor, cores and GPUs, read from the system and without torch."""

import os
import platform
from collections import Counter
from pathlib import Path

GPU_FOLDER = Path("/proc/driver/nvidia/gpus")


def processor() -> str:
    """Name of the processor."""
    return _value(Path("/proc/cpuinfo"), "model name") or platform.processor()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(folder: Path = GPU_FOLDER) -> str | None:
    """`8 x NVIDIA H100 80GB HBM3`, as NVIDIA's driver lists what the machine has; None without one."""
    names = [_value(path, "Model") for path in sorted(folder.glob("*/information"))]
    found = Counter(name for name in names if name)
    return ", ".join(f"{number} x {name}" for name, number in found.items()) or None


def machine_line() -> str:
    """All of it on one line: `AMD EPYC, 2 cores`."""
    return ", ".join(part for part in (processor(), f"{cores()} cores", gpus()) if part)


def _value(path: Path, key: str) -> str | None:
    """The first `key: value` of a file of the system; None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
