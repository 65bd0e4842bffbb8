"""Everything that is decided about a job before it is sent: its files, its command, its id, and whether it can run."""

import importlib.metadata
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import ConfigError
from genrec.launch.cluster_facts import Dashboard, check_size, check_versions, read_facts
from genrec.launch.job_command import JobCommand, read_command
from genrec.launch.options import JobOptions
from genrec.launch.working_tree import WorkingTree, collect

TRAINS = ("train", "tune")
CONSTRAINTS = "constraints.txt"


@dataclass(frozen=True, slots=True)
class Shipment:
    """A job that has passed every check: what is sent, and what is to be said about it."""

    command: JobCommand
    tree: WorkingTree
    submission_id: str
    metadata: dict[str, str]
    packages: list[str]
    notes: list[str]

    @contextmanager
    def archive(self) -> Iterator[Path]:
        """The archive, as long as the block runs."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "working_dir.zip"
            self.tree.write_archive(path)
            yield path


def plan_shipment(
    dashboard: Dashboard, words: Sequence[str], given: Mapping[str, Any], folder: Path, options: JobOptions
) -> Shipment:
    """Reads the command and the cluster, and checks both; raises a GenrecError with the first thing that cannot be.

    What is wrong here is said first, then the cluster is asked, so a mistake costs no connection.
    """
    command = read_command(words, given, folder, options.entrypoint.storage)
    tree = collect(folder, options.entrypoint.exclude)
    left_out = [file for file in command.files if os.path.normpath(file) not in tree.files]
    if left_out:
        raise ConfigError(
            f"Config {left_out[0]} is not among the {len(tree.files)} files that are shipped from {folder}; let git "
            "not ignore it, or leave out the --exclude that matches it."
        )
    packages = _constraints(folder) if options.entrypoint.packages == "constraints" else []
    facts = read_facts(dashboard)
    check_versions(facts)
    notes = []
    if command.config is not None and words[0] in TRAINS:
        note = check_size(command.config, facts)
        notes += [] if note is None else [note]
    name = options.entrypoint.name or command.run_name
    return Shipment(
        command=command,
        tree=tree,
        submission_id=f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        metadata={
            "run": command.run_name,
            "name": name,
            "commit": _commit(folder),
            "genrec_version": importlib.metadata.version("genrec"),
        },
        packages=packages,
        notes=notes,
    )


def _constraints(folder: Path) -> list[str]:
    """The pinned packages of the project's constraints.txt but Ray, which the cluster has."""
    path = folder / CONSTRAINTS
    if not path.is_file():
        raise ConfigError(
            f"--packages constraints installs what {CONSTRAINTS} pins, and {folder} has none; add one, or use "
            "--packages image with an image that has genrec's packages (launch/Dockerfile)."
        )
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not re.match(r"(ray|genrec)\b", line, re.IGNORECASE)]


def _commit(folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
