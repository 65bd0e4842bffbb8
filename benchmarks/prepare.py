"""`genrec prepare` beside Polars on the same log: events a second, peak memory, and how both grow.

python benchmarks/prepare.py --events 1000000 10000000
python benchmarks/prepare.py --events 10000000 100000000 --rounds 1 --items 50000 --order time

A synthetic log of each size is written once (benchmarks/out/prepare) and read by both sides in turn. genrec's side is
the command as a user runs it: in processes of this machine, or on the cluster that RAY_ADDRESS names. Polars' side
(prepare_polars.py, in a virtual environment of its own) does the same work in memory: drop bad rows, count items,
number them by falling count, sort by user and time (stable), group into lists, write Parquet. Memory is the sum over
all processes of a side, what they share counted once.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, summarize
from genrec.config import SyntheticSource
from genrec.data.local_tasks import open_tasks
from genrec.data.manifest import load_manifest
from genrec.data.synthetic import write_log
from peer_process import BENCHMARKS, INSTALL_TIMEOUT_S, OUT, run_child
from script import finish, options_of, run_script

POLARS_VENV = OUT / "polars-venv"
POLARS_REQUIREMENT = "polars==2.1.*"
SAMPLE_EVERY_S = 0.5
EVENTS_PER_FILE = 4_000_000
COLUMNS = {"user": "user", "item": "item", "time": "time", "action": "action", "value": "value"}


class MemorySampler:
    """Samples the memory of the processes that descend from this one and were started while it is entered.

    One that was seen to descend from it counts to its end, also when its parent has gone.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._before = set(_processes())
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _sample(self) -> None:
        ours: set[int] = set()
        while not self._stop.wait(SAMPLE_EVERY_S):
            parents = _processes()
            for pid, parent in sorted(parents.items()):
                if pid not in self._before and (parent == os.getpid() or parent in ours):
                    ours.add(pid)
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in ours & parents.keys()))


def _processes() -> dict[int, int]:
    """The parent of every process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _pss_bytes(pid: int) -> int:
    """Proportional set size: pages that n processes share count 1/n in each."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def polars_python() -> Path:
    """The Python of Polars' own environment, which is made when it is not there."""
    python = POLARS_VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", POLARS_VENV], check=True, timeout=INSTALL_TIMEOUT_S)
        pip = [python, "-m", "pip", "install", "--quiet", POLARS_REQUIREMENT]
        subprocess.run(pip, check=True, timeout=INSTALL_TIMEOUT_S)
    return python


def make_log(num_events: int, num_items: int, order: str) -> Path:
    """A synthetic log of the size, by user (as it is drawn) or by time (as events arrive); written once."""
    folder = OUT / "prepare" / f"{num_events}-{num_items}-{order}"
    if folder.exists():
        return folder / "log"
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    source = SyntheticSource(name="synthetic", num_events=num_events, num_items=num_items)
    started_s = time.perf_counter()
    with open_tasks() as run_tasks:
        write_log(source, draft, run=run_tasks)
    print(f"log of {num_events:,} events: {num_events / (time.perf_counter() - started_s):,.0f} events/s", flush=True)
    if order == "time":
        _sort_by_time(draft / "log", num_events)
    draft.rename(folder)
    return folder / "log"


def _sort_by_time(log: Path, num_events: int) -> None:
    """Rewrites the log as files of consecutive time; needs memory for the whole log."""
    table = pq.read_table(log).sort_by("time")
    shutil.rmtree(log)
    log.mkdir()
    for number, first in enumerate(range(0, len(table), EVENTS_PER_FILE)):
        part: pa.Table = table.slice(first, EVENTS_PER_FILE)
        pq.write_table(part, log / f"part-{number:05d}.parquet", row_group_size=500_000, compression="zstd")


def run_genrec(log: Path, folder: Path, timeout_s: float) -> Row:
    """`genrec prepare` of the log, from the start of the command to its end."""
    config = {
        "name": "prepare-benchmark",
        "data": {"source": {"name": "parquet", "path": str(log), "columns": COLUMNS}, "prepared": str(folder / "set")},
        "model": {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_epochs": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [Path(sys.executable).with_name("genrec"), "prepare", folder / "config.yaml"]
    with MemorySampler() as memory:
        done = run_child(command, log=folder / "genrec.txt", timeout_s=timeout_s, threads=_num_cores())
    row: Row = {"side": "genrec", "status": done.status, "message": done.message, "wall_s": done.wall_s}
    if done.status == "ok":
        row["events"] = load_manifest(folder / "set").num_events
    return row | {"peak_bytes": memory.peak_bytes}


def run_polars(log: Path, folder: Path, timeout_s: float) -> Row:
    """The same work by Polars, from the start of the process to its end."""
    command = [polars_python(), BENCHMARKS / "prepare_polars.py", log, folder / "polars", str(_num_cores())]
    with MemorySampler() as memory:
        done = run_child(command, log=folder / "polars.txt", timeout_s=timeout_s, threads=_num_cores())
    row: Row = {"side": "polars", "status": done.status, "message": done.message, "wall_s": done.wall_s}
    if done.status == "ok":
        row |= json.loads((folder / "polars.txt").read_text(encoding="utf-8").splitlines()[-1])
    return row | {"peak_bytes": memory.peak_bytes}


def compare(options: argparse.Namespace) -> Result:
    """Every size, the sides in turn, `rounds` times."""
    rows: list[Row] = []
    medians: dict[str, Any] = {}
    logs = {num_events: make_log(num_events, options.items, options.order) for num_events in options.events}
    if any(side == "polars" for side in options.sides):
        polars_python()
    for num_events, log in logs.items():
        of_size: list[Row] = []
        for number in range(options.rounds):
            for side in options.sides:
                with tempfile.TemporaryDirectory(dir=OUT / "prepare") as folder:
                    run = run_genrec if side == "genrec" else run_polars
                    row = run(log, Path(folder), options.timeout_s)
                row |= {"size": num_events, "round": number, "load_average_1_min": os.getloadavg()[0]}
                if row["status"] == "ok":
                    row["events_per_s"] = float(row["events"] or 0) / float(row["wall_s"] or 1)
                print(row, flush=True)
                of_size.append(row)
        rows += of_size
        medians[str(num_events)] = _summary(of_size)
    sizes = sorted(options.events)
    if len(sizes) > 1 and all(medians[str(size)].get("genrec_s_per_event") for size in sizes):
        first, last = (medians[str(size)]["genrec_s_per_event"] for size in (sizes[0], sizes[-1]))
        medians["cost_per_event_largest_to_smallest"] = last / first
    return Result(
        name="prepare",
        config={"events": options.events, "items": options.items, "order": options.order, "rounds": options.rounds},
        rows=rows,
        medians=medians,
        versions=installed_versions(("genrec", "ray", "pyarrow", "numpy")) | {"polars": POLARS_REQUIREMENT},
        machine=describe_machine(),
        commit=git_commit(Path(__file__).parent),
    )


def _summary(rows: list[Row]) -> dict[str, Any]:
    """Median speed and largest memory of each side, and the ratio of the sides within each round."""
    result: dict[str, Any] = {}
    speeds: dict[str, dict[int, float]] = {}
    for side in ("genrec", "polars"):
        good = [row for row in rows if row["side"] == side and row["status"] == "ok"]
        if good:
            speeds[side] = {int(row["round"] or 0): float(row["events_per_s"] or 0) for row in good}
            result[f"{side}_events_per_s"] = median(speeds[side].values())
            result[f"{side}_s_per_event"] = 1 / median(speeds[side].values())
            result[f"{side}_peak_gib"] = max(float(row["peak_bytes"] or 0) for row in good) / 2**30
    both = speeds.get("genrec", {}).keys() & speeds.get("polars", {}).keys()
    ratio = summarize(speeds["genrec"][number] / speeds["polars"][number] for number in sorted(both))
    return result | {"ratio": asdict(ratio) if ratio else None}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--order", choices=("user", "time"), default="user", help="how the log is sorted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=("genrec", "polars"), default=["genrec", "polars"])
    parser.add_argument("--timeout-s", type=float, default=3_600)
    options = parser.parse_args()
    result = compare(options)
    finish(result, options.json)


if __name__ == "__main__":
    run_script(main)
