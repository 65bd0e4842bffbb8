"""Compiles the C++ op through which DeepSpeed's CPU workers exchange data in shared memory, before any worker starts.

DeepSpeed compiles it at the first `deepspeed.initialize` on a machine (about a minute on 2 cores). It compiles it, and
loads what is compiled, behind a lock file that a killed process leaves in place: every later worker would wait for
ever. Here it is compiled once, in a process of its own and under a time limit, and whoever compiles or loads it holds a
lock (`op_folder_locked`) that ends with its process. A lock file that is found then has been left behind.

This is not an import of DeepSpeed: the calling process stays free of it.
"""

import contextlib
import importlib.util
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.errors import RunError
from genrec.file_lock import locked

logger = logging.getLogger(__name__)

OP_NAME = "deepspeed_shm_comm"

_COMPILE = (
    "from deepspeed.accelerator import get_accelerator; "
    "get_accelerator().create_op_builder('ShareMemCommBuilder').load()"
)


def build_folder(op: str = OP_NAME) -> Path:
    """Where torch compiles an op: a folder of TORCH_EXTENSIONS_DIR, or of the user's cache.

    Raises RunError when torch is not installed.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root is not None:
        return Path(root) / op
    # torch/version.py is run by itself: importing torch for two strings takes seconds.
    version = runpy.run_path(str(_package_folder("torch") / "version.py"))
    accelerator = "cpu"
    for kind, prefix in (("hip", "rocm"), ("cuda", "cu")):
        if version.get(kind):
            accelerator = prefix + version[kind].replace(".", "")
            break
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"
    return Path(os.path.realpath(cache / "torch_extensions")) / f"{python}_{accelerator}" / op


def is_compiled() -> bool:
    """Whether the op is there and newer than the DeepSpeed and torch that are installed now.

    Raises RunError when DeepSpeed or torch is not installed.
    """
    folder = build_folder()
    library, recipe = folder / f"{OP_NAME}.so", folder / "build.ninja"
    if not (library.is_file() and recipe.is_file()):
        return False
    sources = _package_folder("deepspeed") / "ops" / "csrc" / "cpu" / "comm"
    # The folder is shared by every environment of one Python version; another one's build would be redone by a worker.
    if str(sources) not in recipe.read_text(encoding="utf-8"):
        return False
    inputs = [sources / "shm.cpp", _package_folder("torch") / "version.py"]
    return library.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


def stale_lock(op: str = OP_NAME) -> Path | None:
    """The lock file of a build that was killed, or None; a lock that a live process holds is not stale."""
    lock = build_folder(op) / "lock"
    if not lock.exists() or _is_open_somewhere(lock):
        return None
    # Released while the processes were looked through.
    return lock if lock.exists() else None


def compile_cpu_op(timeout_s: float = 600.0) -> None:
    """Compiles the op if it is not compiled; returns within 0.1 s if it is, and at once where Linux is not.

    Raises RunError when a tool is missing, or the build fails or takes longer than `timeout_s`.
    """
    if sys.platform != "linux":
        return
    with op_folder_locked():
        if not is_compiled():
            _compile(timeout_s)


@contextmanager
def op_folder_locked(op: str = OP_NAME) -> Iterator[None]:
    """One process of this machine at a time compiles or loads an op; a lock file that a killed one left is removed.

    Raises RunError when another one has it for more than half an hour.
    """
    with locked(build_folder(op).with_suffix(".genrec-lock"), "compiling or loading DeepSpeed's CPU op"):
        lock = stale_lock(op)
        if lock is not None:
            logger.warning("%s was left by a process that was killed, and is removed.", lock)
            lock.unlink(missing_ok=True)
        yield


def _compile(timeout_s: float) -> None:
    for tool, mend in (("g++", "apt-get install g++"), ("ninja", "pip install ninja")):
        if find_tool(tool) is None:
            raise RunError(
                f"DeepSpeed needs {tool} to compile its CPU op and it is not on PATH; install it ({mend}), "
                "or train without DeepSpeed: engine.name=torch."
            )
    _build(timeout_s)


def find_tool(name: str) -> str | None:
    """The path of an executable: on PATH, or beside this Python (a virtual environment that is not activated)."""
    return shutil.which(name, path=_path_with_environment())


def _path_with_environment() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RunError(f"{name} is not installed; install genrec with its dependencies: make install.")
    return Path(spec.origin).parent


def _build(timeout_s: float) -> None:
    environment = os.environ | {"PATH": _path_with_environment(), "DS_ACCELERATOR": "cpu"}
    # A session of its own: the compiler's whole process group can be ended, and a Ctrl-C here does not leave a lock.
    process = subprocess.Popen(
        [sys.executable, "-c", _COMPILE],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"DeepSpeed's CPU op did not compile within {timeout_s:.0f} s; run `genrec doctor` when the machine is "
            "less busy, or train without DeepSpeed: engine.name=torch."
        ) from error
    finally:
        if process.poll() is None:
            _end_group(process)
    library = build_folder() / f"{OP_NAME}.so"
    if process.returncode != 0 or not library.is_file():
        raise RunError(
            f"DeepSpeed's CPU op does not compile ({_reason(output)}); mend what `genrec doctor` names, "
            "or train without DeepSpeed: engine.name=torch."
        )
    # ninja leaves an up-to-date library's time as it is; the next look needs it newer than the packages.
    os.utime(library)


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    lock = stale_lock()
    if lock is not None:
        lock.unlink(missing_ok=True)


def _reason(output: str) -> str:
    """The line that says most: the compiler's first error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()]
    return (errors or lines[-1:] or ["no output"])[0]


def _is_open_somewhere(path: Path) -> bool:
    """Whether a process on this machine has the file open (the builder keeps its lock open)."""
    target = path.resolve()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        # A process that ends meanwhile, or one of another user.
        with contextlib.suppress(OSError):
            if link.readlink() == target:
                return True
    return False
