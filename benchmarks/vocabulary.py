"""Tens of millions of string ids: time and peak memory of `genrec prepare` when most events have an item of their own.

    python benchmarks/vocabulary.py --items 30000000 --events 48000000 --users 2000000

Every item occurs at least once, the other events follow a power law. Ids are text of 28 characters (items) and up to 12
(users), scattered over the log, so that no part of it has a vocabulary of its own. Memory is measured as in prepare.py.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.bench.result import Result, Row
from genrec.data.manifest import load_manifest
from peer_process import OUT
from prepare import EVENTS_PER_FILE, run_genrec
from script import finish, options_of, result_of, run_script

_SCATTER = 2_654_435_761  # odd, so it maps numbers to different numbers modulo a power of two
_ID_NUMBERS = 2**40


def write_text_log(folder: Path, num_events: int, num_items: int, num_users: int, seed: int = 0) -> None:
    """A log in the order of time, `EVENTS_PER_FILE` events a file; raises ValueError for fewer events than items."""
    if num_events < num_items:
        raise ValueError(f"{num_items} items need as many events, and there are {num_events}; raise --events")
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, num_events, EVENTS_PER_FILE)):
        last = min(first + EVENTS_PER_FILE, num_events)
        once = np.arange(first * num_items // num_events, last * num_items // num_events)
        others = (generator.pareto(1.1, last - first - len(once)) * 1_000).astype(np.int64) % num_items
        items = generator.permutation(np.concatenate([once, others])) * _SCATTER % _ID_NUMBERS
        users = generator.integers(0, num_users, last - first)
        columns = {
            "user": pa.array(np.char.add("user-", users.astype("U7"))),
            "item": pa.array(np.char.add("catalogue:item:", np.char.zfill(items.astype("U13"), 13))),
            "time": pa.array(1_600_000_000 + np.arange(first, last)),
            "action": pa.nulls(last - first, pa.string()),
            "value": pa.nulls(last - first, pa.float64()),
        }
        pq.write_table(pa.table(columns), folder / f"part-{number:05d}.parquet", row_group_size=500_000)


def measure(options: argparse.Namespace) -> Result:
    """Writes the log, prepares it once, and counts what came out."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        write_text_log(folder / "log", options.events, options.items, options.users)
        row: Row = run_genrec(folder / "log", folder, options.timeout_s)
        row["load_average_1_min"] = os.getloadavg()[0]
        if row["status"] == "ok":
            row["items"] = load_manifest(folder / "set").num_items
        shutil.rmtree(folder / "log")
    return result_of(
        __file__,
        config={"events": options.events, "items": options.items, "users": options.users},
        rows=[row],
        medians={"peak_gib": float(row["peak_bytes"] or 0) / 2**30, "wall_s": row["wall_s"], "items": row.get("items")},
        packages=("genrec", "pyarrow", "numpy"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--events", type=int, default=1_600_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--timeout-s", type=float, default=3_600)
    options = parser.parse_args()
    result = measure(options)
    finish(result, options.json)


if __name__ == "__main__":
    run_script(main)
