"""What this machine has of what genrec needs, one finding a line, each with its mend: `genrec doctor`."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genrec.cpu_op import build_folder, compile_cpu_op, find_tool, is_compiled
from genrec.errors import RunError

SUPPORTED_PYTHONS = ((3, 11), (3, 12))

# The same numbers as in constraints.txt, which is not installed with the package; a guard compares them.
TESTED_VERSIONS = {
    "torch": "2.13.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "pyarrow": "26.0.1",
    "wandb": "0.31.0",
}

GIB = 2**30
MIN_SHARED_MEMORY_BYTES = 2 * GIB
MIN_FREE_DISK_BYTES = 10 * GIB
MIN_MEMORY_BYTES = 4 * GIB

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` says what to do and is empty when the status is ok."""

    name: str
    status: Status
    value: str
    mend: str = ""


def diagnose(compile_timeout_s: float = 600.0) -> list[Finding]:
    """Every finding about this machine; compiles DeepSpeed's CPU op if it is not compiled (a minute on 2 cores)."""
    return [
        check_python(),
        *(check_version(name, tested) for name, tested in TESTED_VERSIONS.items()),
        check_accelerators(),
        check_cpus(),
        check_memory(),
        check_shared_memory(),
        check_disk(Path.cwd()),
        *check_cpu_training(compile_timeout_s),
        check_data_folder(),
        check_wandb_key(),
    ]


def has_errors(findings: list[Finding]) -> bool:
    """Whether genrec cannot work as it is: the exit code of `genrec doctor` is then 1."""
    return any(finding.status == "error" for finding in findings)


def print_findings(findings: list[Finding], console: Console | None = None) -> None:
    """Prints one line a finding, with the mend under what is not ok."""
    colors = {"ok": "green", "warning": "yellow", "error": "red"}
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold", no_wrap=column == "")
    for finding in findings:
        table.add_row(f"[{colors[finding.status]}]{finding.status}", finding.name, escape(finding.value))
        if finding.mend:
            table.add_row("", "", f"[bold]mend:[/bold] {escape(finding.mend)}")
    (console or Console()).print(table)


def check_python() -> Finding:
    """The interpreter against the versions that setup.py accepts."""
    value = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] in SUPPORTED_PYTHONS:
        return Finding("Python", "ok", value)
    names = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
    return Finding("Python", "error", value, f"use Python {names}: make install PYTHON=python3.11")


def check_version(name: str, tested: str) -> Finding:
    """An installed package against the version that genrec is tested with."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "error", "not installed", f"pip install -c constraints.txt {name}=={tested}")
    # A local part names the build, not another version: 2.13.0+cpu.
    if installed.split("+")[0] == tested:
        return Finding(name, "ok", installed)
    value = f"{installed}, tested with {tested}"
    return Finding(name, "warning", value, f"pip install -c constraints.txt {name}=={tested}")


def check_accelerators() -> Finding:
    """The CUDA devices that torch sees; none is fine, training then runs on the CPUs."""
    try:
        devices = _cuda_devices()
    except (ImportError, OSError) as error:
        return Finding("accelerators", "error", f"torch cannot be imported ({error})", "make install")
    if devices:
        return Finding("accelerators", "ok", ", ".join(devices))
    if find_tool("nvidia-smi") is not None:
        return Finding(
            "accelerators",
            "warning",
            "nvidia-smi is here, but torch sees no CUDA device",
            "install the CUDA build of torch that fits the driver: see constraints.txt",
        )
    return Finding("accelerators", "ok", "none; training runs on the CPUs")


def check_cpus() -> Finding:
    """The CPUs that this process may use."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_cpus >= 2:
        return Finding("CPUs", "ok", str(num_cpus))
    return Finding("CPUs", "warning", "1", "use 2 or more: data and training take turns on a single CPU")


def check_memory() -> Finding:
    """The memory that this process may use: the machine's, or its container's limit."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory_bytes = min(memory_bytes, int(text))
    mend = f"use {_gib(MIN_MEMORY_BYTES)} or more: Ray alone takes about 1 GiB"
    return _at_least("memory", memory_bytes, MIN_MEMORY_BYTES, mend)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """The size of the shared memory in which Ray keeps its objects; a container has 64 MiB unless told otherwise."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"no {folder} on this system; Ray keeps objects in its temporary folder")
    mend = (
        "Ray falls back to the disk and is slow; start the container with --shm-size=4g, or as root: "
        f"mount -o remount,size=4g {folder}"
    )
    return _at_least("shared memory", shutil.disk_usage(folder).total, MIN_SHARED_MEMORY_BYTES, mend)


def check_disk(folder: Path) -> Finding:
    """The free disk space where prepared data and runs are written by default."""
    mend = "free some, or put runs_dir and data.prepared on a larger disk"
    return _at_least("free disk", shutil.disk_usage(folder).free, MIN_FREE_DISK_BYTES, mend)


def check_cpu_training(compile_timeout_s: float) -> list[Finding]:
    """What DeepSpeed needs on CPUs: a compiler, ninja, Python's headers and the op that they compile.

    A machine with a CUDA device trains without them, so what is missing there is a warning.
    """
    findings = [check_compiler(), check_ninja(), check_python_headers(), check_cpu_op(compile_timeout_s)]
    try:
        trains_on_gpu = bool(_cuda_devices())
    except (ImportError, OSError):
        trains_on_gpu = False
    if not trains_on_gpu:
        return findings
    return [replace(finding, status="warning") if finding.status == "error" else finding for finding in findings]


def check_compiler() -> Finding:
    """The C++ compiler that DeepSpeed's CPU op needs."""
    path = find_tool("g++")
    if path is None:
        return Finding("g++", "error", "not on PATH", "apt-get install g++ (DeepSpeed compiles its CPU op)")
    try:
        shown = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("g++", "error", f"{path} does not run ({error})", "apt-get install --reinstall g++")
    return Finding("g++", "ok", f"{shown.stdout.strip()} ({path})")


def check_ninja() -> Finding:
    """The `ninja` executable: DeepSpeed wants it on PATH, genrec puts the one of its own environment there."""
    path = find_tool("ninja")
    if path is None:
        return Finding("ninja", "error", "neither on PATH nor beside Python", "pip install ninja")
    return Finding("ninja", "ok", path)


def check_python_headers() -> Finding:
    """Python.h, without which no extension compiles."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if header.is_file():
        return Finding("Python headers", "ok", str(header.parent))
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    return Finding("Python headers", "error", f"{header} is missing", f"apt-get install {package}")


def check_cpu_op(compile_timeout_s: float) -> Finding:
    """DeepSpeed's CPU op, compiled here if it was not."""
    name = "DeepSpeed CPU op"
    if sys.platform != "linux":
        return Finding(name, "ok", "not needed: workers talk through gloo where Linux is not")
    start_s = time.monotonic()
    try:
        was_compiled = is_compiled()
        compile_cpu_op(compile_timeout_s)
        where = build_folder()
    except RunError as error:
        return Finding(name, "error", "not usable", str(error))
    how = "compiled" if was_compiled else f"compiled now, in {time.monotonic() - start_s:.0f} s"
    return Finding(name, "ok", f"{how} ({where})")


def check_data_folder() -> Finding:
    """GENREC_DATA, the folder of public data sets that configs refer to; needed by those configs only."""
    folder = os.environ.get("GENREC_DATA")
    if folder is None:
        return Finding("GENREC_DATA", "ok", "not set; only configs that name it need it")
    if Path(folder).is_dir():
        return Finding("GENREC_DATA", "ok", folder)
    return Finding("GENREC_DATA", "warning", f"{folder} is not a folder", "export GENREC_DATA=FOLDER_OF_DATA_SETS")


def check_wandb_key() -> Finding:
    """Whether the environment has a key for Weights & Biases; without any key, runs are logged offline."""
    if os.environ.get("WANDB_API_KEY"):
        return Finding("wandb key", "ok", "WANDB_API_KEY is set")
    return Finding("wandb key", "ok", "WANDB_API_KEY is not set; without `wandb login`, tracking.wandb logs offline")


def _cuda_devices() -> list[str]:
    # Imported here: `genrec --help` must not wait for torch.
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{device.name} ({_gib(device.total_memory)})" for device in devices]


def _at_least(name: str, found_bytes: int, wanted_bytes: int, mend: str) -> Finding:
    if found_bytes >= wanted_bytes:
        return Finding(name, "ok", _gib(found_bytes))
    return Finding(name, "warning", f"{_gib(found_bytes)}, {_gib(wanted_bytes)} are wanted", mend)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
