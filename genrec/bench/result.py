"""The one shape of a benchmark's result: what was measured, on what, with which versions, and the numbers."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from genrec.machine_facts import cores, gpus, processor

SCHEMA_VERSION = 1

Row = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and spread of repeated readings."""

    median: float
    minimum: float
    maximum: float
    count: int

    @property
    def spread(self) -> float:
        """(maximum - minimum) / median: 0.1 means that the readings lie within 10% of each other."""
        return (self.maximum - self.minimum) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one benchmark. `rows` are the readings, `medians` what they come to."""

    name: str
    config: dict[str, Any]
    rows: list[Row]
    medians: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    commit: str
    finished: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    schema_version: int = SCHEMA_VERSION


def summarize(values: Iterable[float]) -> Summary | None:
    """Median, minimum and maximum of the readings; None when there are none."""
    found = list(values)
    return Summary(median(found), min(found), max(found), len(found)) if found else None


def write_result(path: str | Path, result: Result) -> None:
    """Writes the result as indented JSON and makes the folder it goes into."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


def read_result(path: str | Path) -> Result:
    """The result that `write_result` wrote; raises ValueError for another schema version."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {values.get('schema_version')}, this reads {SCHEMA_VERSION}")
    return Result(**values)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPUs, memory and how busy the machine is: a reading on a shared machine is not a reading."""
    found = gpus()
    return {
        "processor": processor(),
        "cores": cores(),
        **({"gpu": found} if found else {}),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages in this environment; one that is not installed is left out."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: str | Path) -> str:
    """Commit of the checkout, with `-dirty` when tracked files differ from it; `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
