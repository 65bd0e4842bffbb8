"""Recommendations a second: of `Recommender` in one process by the size of a request, and of `genrec recommend`.

    python benchmarks/recommend.py runs/quickstart [--k 10] [--batches 1 32 512] [--users 1024] [--rounds 3]
        [--threads 1] [--skip-command]

In the process, `--users` random histories of `--history` events are answered in requests of each size; loading the
model and the first request of each size are not counted. `genrec recommend` answers every user of the run's data set,
from the command to its end, with Ray's start-up in it; one that fails or hangs is a row that says so. Rounds take
turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.bench.result import Result, Row, summarize
from genrec.data.manifest import load_manifest
from genrec.inference.recommender import Recommender
from genrec.run_dir import open_run
from genrec_command import CommandFailed, run_command
from script import finish, options_of, result_of, run_script

TIMEOUT_S = 1_800
COMMAND = "genrec recommend"


def histories_of(recommender: Recommender, users: int, length: int) -> list[list[Any]]:
    """Random histories of original item ids, popular items more often."""
    drawn = np.random.default_rng(0).random((users, length)) ** 3
    items = (drawn * recommender.num_items).astype(int)
    ids = recommender.item_ids.to_pylist()
    return [[ids[item] for item in row] for row in items]


def answer(recommender: Recommender, histories: Sequence[list[Any]], batch: int, k: int) -> float:
    """Seconds to answer all histories in requests of `batch` users."""
    times = [list(range(len(history))) for history in histories]
    started_at = time.perf_counter()
    for first in range(0, len(histories), batch):
        part = slice(first, first + batch)
        recommender.recommend_many(histories[part], k, times=times[part])
    return time.perf_counter() - started_at


def command_once(run: Path, k: int) -> Row:
    """Status and seconds of `genrec recommend` for all users."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "genrec", "recommend", str(run), "--k", str(k)]
        started_at = time.perf_counter()
        try:
            run_command([*command, "--output", str(Path(folder) / "out")], timeout_s=TIMEOUT_S)
        except CommandFailed as error:
            return {"status": error.finished.status, "error": error.finished.message}
        return {"status": "ok", "seconds": time.perf_counter() - started_at}


def measure(arguments: argparse.Namespace) -> Result:
    """Users a second by request size, and of the command."""
    torch.set_num_threads(arguments.threads)
    _, config = open_run(arguments.run)
    num_users = load_manifest(config.data.prepared).num_users
    recommender = Recommender.load(arguments.run)
    histories = histories_of(recommender, arguments.users, arguments.history)
    for batch in arguments.batches:
        answer(recommender, histories[:batch], batch, arguments.k)
    rows: list[Row] = []
    for number in range(arguments.rounds):
        readings: list[tuple[str, int, Row]] = [
            (
                f"requests of {batch}",
                len(histories),
                {"status": "ok", "seconds": answer(recommender, histories, batch, arguments.k)},
            )
            for batch in arguments.batches
        ]
        if not arguments.skip_command:
            readings.append((COMMAND, num_users, command_once(arguments.run, arguments.k)))
        for what, users, reading in readings:
            row: Row = {"what": what, "round": number, "users": users, **reading}
            if row["status"] == "ok":
                row["users_per_s"] = users / float(row["seconds"] or 1)
            rows.append({**row, "load_average_1_min": os.getloadavg()[0]})
            print(json.dumps(rows[-1]), flush=True)
    good = [row for row in rows if row["status"] == "ok"]
    found = {
        what: summarize(float(row["users_per_s"] or 0) for row in good if row["what"] == what)
        for what in dict.fromkeys(str(row["what"]) for row in good)
    }
    return result_of(
        __file__,
        config={"model": config.model.model_dump(mode="json"), "items": recommender.num_items, "k": arguments.k}
        | {name: getattr(arguments, name) for name in ("users", "history", "threads")},
        rows=rows,
        medians={what: {"users_per_s": asdict(summary)} for what, summary in found.items() if summary is not None},
        packages=("genrec", "torch", "ray"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("run", type=Path, help="run directory with a model")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 512], help="users in a request")
    parser.add_argument("--users", type=int, default=1_024)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-command", action="store_true", help="only in this process")
    arguments = parser.parse_args()
    result = measure(arguments)
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
