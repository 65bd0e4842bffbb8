"""`genrec prepare --append`: what a new day costs beside preparing everything at once, and that both give the same set.

    python benchmarks/append.py --events 10000000 --new 1000000 --rounds 3

A synthetic log in the order of time is cut in two: its last `--new` events are the new day. Each round prepares the old
part, appends the day, and prepares both at once into another folder, each time with the command as a user runs it, from
its start to its end. Then the two sets are compared event by event in original ids: only shards, rows and numbers may
stand in another order.
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from genrec.bench.result import Result, Row, summarize
from genrec.data.manifest import load_manifest
from genrec.data.schema import ITEMS_FILE, SEQUENCES_SCHEMA, USERS_FILE
from genrec.data.sequence_files import read_row_group
from peer_process import OUT, run_child
from prepare import COLUMNS, make_log
from script import finish, options_of, result_of, run_script

SIDES = ("base", "append", "at-once")
EVENTS_PER_FILE = 4_000_000
COUNTS = ("num_users", "num_items", "num_events", "num_train_events", "time_range", "length_histogram", "num_rows")


def cut_log(num_events: int, num_new: int, num_items: int, folder: Path) -> tuple[Path, Path]:
    """The log as a folder of old files and one new file that sorts after them; returns both."""
    table = pq.read_table(make_log(num_events + num_new, num_items, "time"))
    first_new = len(table) - num_new
    (folder / "old").mkdir()
    for number, first in enumerate(range(0, first_new, EVENTS_PER_FILE)):
        part = table.slice(first, min(EVENTS_PER_FILE, first_new - first))
        pq.write_table(part, folder / f"old/day-{number:05d}.parquet", row_group_size=500_000)
    pq.write_table(table.slice(first_new), folder / "day-99999.parquet", row_group_size=500_000)
    return folder / "old", folder / "day-99999.parquet"


def run_round(old: Path, day: Path, folder: Path, timeout_s: float) -> list[Row]:
    """Prepares the old part, appends the day to it, and prepares everything at once; a row for each."""
    log = folder / "log"
    shutil.copytree(old, log, copy_function=os.link)
    rows: list[Row] = []
    for side in SIDES:
        if side == "append":
            os.link(day, log / day.name)
        prepared = folder / ("at-once" if side == "at-once" else "set")
        config = {
            "name": "append-benchmark",
            "data": {"source": {"name": "parquet", "path": str(log), "columns": COLUMNS}, "prepared": str(prepared)},
            "model": {"name": "sasrec"},
            "loss": {"name": "full-softmax"},
            "train": {"max_epochs": 1},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [Path(sys.executable).with_name("genrec"), "prepare", folder / "config.yaml"]
        command += ["--append"] if side == "append" else []
        done = run_child(command, log=folder / f"{side}.txt", timeout_s=timeout_s, threads=len(os.sched_getaffinity(0)))
        if done.status != "ok":
            raise SystemExit(f"{side}: {done.message}")
        rows.append({"side": side, "wall_s": done.wall_s, "load_average_1_min": os.getloadavg()[0]})
    return rows


def differences(left: Path, right: Path) -> list[str]:
    """What two prepared sets do not have in common, in original ids; empty when they are equal in content."""
    found = [f"manifest.{name}" for name in COUNTS if _count(left, name) != _count(right, name)]
    if sorted(_count(left, "actions")) != sorted(_count(right, "actions")):
        found.append("manifest.actions")
    if not _items(left).equals(_items(right)):
        found.append(ITEMS_FILE)
    if not found:
        ours, theirs = _events(left), _events(right)
        found += [f"events.{name}" for name in ours if not np.array_equal(ours[name], theirs[name])]
    return found


def _count(folder: Path, name: str) -> Any:
    return getattr(load_manifest(folder), name)


def _items(folder: Path) -> pa.Table:
    """The item table without its numbers, by original id."""
    return pq.read_table(folder / ITEMS_FILE).drop_columns(["index"]).sort_by("item").combine_chunks()


def _events(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """All events by original user id, in the order of the sequence: lengths of the users, ids, times, actions."""
    manifest = load_manifest(folder)
    table = pa.concat_tables(
        read_row_group(folder, file.path, group, SEQUENCES_SCHEMA.names)
        for file in manifest.files
        for group in range(len(file.row_groups))
    )
    users = pq.read_table(folder / USERS_FILE)["user"].take(table["user"])
    order = pc.sort_indices(users)
    table = table.take(order)
    ids = pq.read_table(folder / ITEMS_FILE)["item"].to_numpy()
    rank = np.argsort(np.argsort(np.array(manifest.actions)))  # of an action's name; new ones may stand elsewhere
    columns = {
        name: np.concatenate([c.flatten().to_numpy() for c in table[name].chunks])
        for name in ("items", "times", "actions")
    }
    return {
        "users": users.take(order).to_numpy(),
        "lengths": table["length"].to_numpy(),
        "items": ids[columns["items"] - 1],
        "times": columns["times"],
        "actions": np.concatenate([[-1], rank])[columns["actions"]],
    }


def measure(options: argparse.Namespace) -> Result:
    """All rounds; the ratio is taken within each."""
    import ray

    rows: list[Row] = []
    ratios: list[float] = []
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        old, day = cut_log(options.events, options.new, options.items, folder)
        ray.shutdown()  # the log is written: what is measured starts its own
        for number in range(options.rounds):
            (folder / str(number)).mkdir()
            seconds = run_round(old, day, folder / str(number), options.timeout_s)
            different = differences(folder / f"{number}/set", folder / f"{number}/at-once")
            if different:
                raise SystemExit(f"appending gives another set than preparing at once: {', '.join(different)}")
            wall_s = {str(row["side"]): float(row["wall_s"] or 0) for row in seconds}
            ratios.append(wall_s["append"] / wall_s["at-once"])
            rows += [{"round": number, **row} for row in seconds]
            print(f"round {number}: {wall_s}, ratio {ratios[-1]:.3f}, the sets are equal", flush=True)
            shutil.rmtree(folder / str(number))
    ratio = summarize(ratios)
    return result_of(
        __file__,
        config={"events": options.events, "new": options.new, "items": options.items, "rounds": options.rounds},
        rows=rows,
        medians={"append_to_at_once": asdict(ratio) if ratio else None, "equal": True},
        packages=("genrec", "ray", "pyarrow", "numpy"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the old part")
    parser.add_argument("--new", type=int, default=100_000, help="events of the new day")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout-s", type=float, default=3_600)
    options = parser.parse_args()
    result = measure(options)
    finish(result, options.json)


if __name__ == "__main__":
    run_script(main)
