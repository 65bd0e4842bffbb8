"""Full-catalogue evaluation at the size of a large catalogue: users a second and peak memory, by number of workers.

    python benchmarks/evaluation.py [--items 10000000] [--users 2000] [--dim 64] [--workers 1 2] [--threads 1]
        [--listed 50] [--history 50] [--check 0] [--device cpu] [--json benchmarks/out/evaluation.json]

Users are synthetic: histories of `--history` events and a target, drawn by popularity; a hidden state is the mean of
the history's item vectors, so what is measured is the ranking of every item for every user (ranks, and the `--listed`
best items), not a transformer. Each worker is a process of its own and holds its rows of the item table only. One
worker holds the whole table and ranks by chunks.

Each row has `peak_bytes`, the largest peak resident set of a worker (libraries, table, scores), and `table_bytes`, what
a worker's rows take; `cores_used` is processor seconds over wall seconds, of all workers.
`--check N` also ranks the first N users by the whole score matrix, a user at a time, in a process of its own. The last
bits of a score depend on the shape of the product, and of ten million items some score within them of the target: the
script fails unless every rank lies between those with such items all below and all above the target, and
`largest_distance` is how far a rank is from that of the whole matrix, at most.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from genrec.bench.result import Row, summarize
from genrec.data.batch import Batch, batch_from_arrays
from genrec.evaluation.ranking import Limits, rank_users
from genrec.evaluation.sharded_table import ShardedItemTable, shard_of
from genrec.evaluation.users import EvaluationBatch, placeholder_batch
from genrec.evaluation.workers import Workers
from genrec.models.base import SequenceModel
from genrec.models.item_table import ItemTable
from script import finish, options_of, result_of, run_script

TIMEOUT_S = 3 * 3_600  # 100,000 users of 10 million items take one hour of two cores
ROUNDING = 4 * 2**-23  # relative to the lengths of both vectors: 4 units in the last place of fp32
SEED_ROWS = 2**16  # rows of the table that are drawn together, so that a shard is drawn without the rest


class MeanOfHistory(SequenceModel):
    """The hidden state of an event is the mean of the item vectors up to it."""

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]."""
        vectors = self.item_table.embed(batch.items)
        parts = vectors.split(batch.offsets.diff().tolist())
        places = [torch.arange(1, len(part) + 1, device=vectors.device).unsqueeze(1) for part in parts]
        return torch.cat([part.cumsum(0) / place for part, place in zip(parts, places, strict=True)])


def table_rows(first: int, end: int, dim: int) -> Tensor:
    """Rows `[first, end)` of the synthetic item table, the same for any division into shards."""
    rows = torch.empty(end - first, dim)
    for block in range(first // SEED_ROWS, -(-end // SEED_ROWS)):
        drawn = torch.randn(SEED_ROWS, dim, generator=torch.Generator().manual_seed(block))
        begin, stop = max(first, block * SEED_ROWS), min(end, (block + 1) * SEED_ROWS)
        rows[begin - first : stop - first] = drawn[begin - block * SEED_ROWS : stop - block * SEED_ROWS]
    return rows


def users_of(first: int, end: int, num_items: int, history: int) -> EvaluationBatch:
    """Users `[first, end)`; items are drawn by a power law."""
    num_users = end - first
    if num_users == 0:
        return placeholder_batch()
    drawn = np.concatenate(
        [np.random.default_rng(user).random(history + 1) ** 3 for user in range(first, end)]
    ).reshape(num_users, history + 1)
    items = 1 + (drawn * num_items).astype(np.int64)
    seen = items[:, :history].ravel()
    return EvaluationBatch(
        batch=batch_from_arrays(seen, np.arange(0, num_users * history + 1, history)),
        users=torch.arange(first, end),
        targets=torch.from_numpy(items[:, history].copy()),
        history_lengths=torch.full((num_users,), history),
        seen_rows=torch.arange(num_users).repeat_interleave(history),
        seen_items=torch.from_numpy(seen),
    )


def work(task: dict[str, Any]) -> None:
    """One worker: ranks its share of the users and writes what it took."""
    torch.set_num_threads(task["threads"])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(task["device"], rank if task["device"] == "cuda" else None)

    def all_reduce(values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    if count > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    workers = Workers(rank, count, all_reduce if count > 1 else None)
    first, end = shard_of(task["items"], workers)
    model = MeanOfHistory(ItemTable(0, task["dim"]), None).to(device)  # type: ignore[arg-type]
    model.item_table = ShardedItemTable(
        table_rows(first, end, task["dim"]).to(device), task["items"], workers, l2_normalize=False
    )
    limits = Limits(task["max_scores_bytes"] // (4 * task["users_per_batch"]), task["listed"])
    share = range(task["users"] * rank // count, task["users"] * (rank + 1) // count)
    # As many passes on every worker, as evaluate.py sees to.
    passes = -(-max(-(-task["users"] // count), 1) // task["users_per_batch"])
    ranks = []
    started, started_cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for number in range(passes):
            begin = min(share.start + number * task["users_per_batch"], share.stop)
            stop = min(begin + task["users_per_batch"], share.stop)
            users = users_of(begin, stop, task["items"], task["history"])
            ranks.append(rank_users(model, users, workers, limits, device).ranks.cpu())
    seconds = time.perf_counter() - started
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    told = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - started_cpu,
        "peak_bytes": on_device or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "table_bytes": 4 * (end - first) * task["dim"],
        "ranks": torch.cat(ranks).tolist(),
    }
    Path(task["out"], f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def check(task: dict[str, Any]) -> None:
    """Ranks of the first users by the whole score matrix, a user at a time: the rank, the least and the largest one
    that rounding allows."""
    torch.set_num_threads(task["threads"])
    table = table_rows(0, task["items"] + 1, task["dim"])
    users = users_of(0, task["check"], task["items"], task["history"])
    ranks = []
    for row, target in enumerate(users.targets.tolist()):
        seen = users.seen_items[users.seen_rows == row]
        hidden = table[seen].mean(0)
        scores = table @ hidden
        own = scores[target].clone()
        scores[0] = scores[seen] = -float("inf")
        scores[target] = own
        rounding = ROUNDING * float(hidden.norm() * table[target].norm())
        least = 1 + int((scores > own + rounding).sum())
        ranks.append((int((scores >= own).sum()), least, int((scores >= own - rounding).sum())))
    Path(task["out"], "check.json").write_text(json.dumps(ranks), encoding="utf-8")


def start(task: dict[str, Any], count: int, mode: str) -> None:
    """Runs the processes of a measurement to their end; raises where one fails or runs out of time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, "--task", json.dumps(task), "--mode", mode]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    processes = [subprocess.Popen(command, env={**os.environ, **where, "RANK": str(rank)}) for rank in range(count)]
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for process in processes:
            if process.wait(max(1.0, deadline - time.monotonic())):
                raise RuntimeError(f"a worker of {mode} with {count} workers failed with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(task: dict[str, Any], count: int) -> Row:
    """One reading with `count` workers."""
    with tempfile.TemporaryDirectory() as out:
        start({**task, "out": out}, count, "work")
        told = [json.loads(Path(out, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
        seconds = max(worker["seconds"] for worker in told)
        row: Row = {
            "workers": count,
            "seconds": round(seconds, 3),
            "cores_used": round(sum(worker["cpu_seconds"] for worker in told) / seconds, 2),
            "users_per_s": round(task["users"] / seconds, 2),
            "peak_bytes": max(worker["peak_bytes"] for worker in told),
            "table_bytes": max(worker["table_bytes"] for worker in told),
            "load_average_1_min": round(os.getloadavg()[0], 2),
        }
        if task["check"]:
            start({**task, "out": out}, 1, "check")
            expected = json.loads(Path(out, "check.json").read_text(encoding="utf-8"))
            ranks = [rank for worker in told for rank in worker["ranks"]][: len(expected)]
            for rank, (_, least, largest) in zip(ranks, expected, strict=True):
                if not least <= rank <= largest:
                    raise RuntimeError(f"a user's rank is {rank}, and by the whole matrix it is {least} to {largest}")
            row["largest_distance"] = max(abs(rank - whole) for rank, (whole, *_) in zip(ranks, expected, strict=True))
    return row


def main() -> None:
    """Reads the options, measures, prints and writes the result."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a worker")
    parser.add_argument("--listed", type=int, default=50, help="best items wanted of each user; 0: ranks alone")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--users-per-batch", type=int, default=512)
    parser.add_argument("--max-scores-bytes", type=int, default=32 * 2**20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--check", type=int, default=0, help="users that are also ranked by the whole matrix")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=["work", "check"], help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    if given["mode"]:
        {"work": work, "check": check}[given["mode"]](json.loads(given["task"]))
        return
    task = {name: value for name, value in given.items() if name not in ("workers", "rounds", "json", "task", "mode")}
    rows = []
    for _ in range(given["rounds"]):
        for count in given["workers"]:
            rows.append(measure(task, count))
            print(json.dumps(rows[-1]), flush=True)
    medians = {
        str(count): asdict(found)
        for count in given["workers"]
        if (found := summarize(float(row["users_per_s"] or 0) for row in rows if row["workers"] == count))
    }
    packages = ("genrec", "torch", "numpy")
    finish(result_of(__file__, config=task, rows=rows, medians=medians, packages=packages), given["json"])


if __name__ == "__main__":
    run_script(main)
