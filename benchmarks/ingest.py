"""How fast micro-batches arrive, without a model: bare scan, in-process reader, Ray Data with a consumer per worker.

    python benchmarks/ingest.py --events 20000000 --rounds 3 [--workers 2] [--lengths zipf|beauty] [--only scan local]
    python benchmarks/ingest.py --config configs/sasrec_beauty.yaml            # a prepared set, all its epochs planned
    python benchmarks/ingest.py --config configs/quickstart.yaml --train-steps 200    # data wait of real training, too

`scan` reads the same columns of the same row groups with pyarrow and does nothing with them. `local` is the in-process
reader of one worker. `ray` is Ray Data with one consuming task for each worker, as in training; Ray is up before the
clock starts, and `first_batch_s` runs from asking for the data set to the first `Batch`. Sides take turns.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.bench.result import Result, Row, summarize
from genrec.config import ExperimentConfig, LeaveOneOutSplit, config_from_dict, load_config
from genrec.data.manifest import Manifest, content_hash, describe_sequence_file, load_manifest, save_manifest
from genrec.data.plan import Plan, make_plan
from genrec.data.schema import ITEMS_FILE, SEQUENCES_DIR, SEQUENCES_SCHEMA, USERS_FILE, items_schema, users_schema
from genrec.data.sequence_files import read_row_group
from script import finish, options_of, result_of, run_script

EVENTS_PER_FILE = 2_000_000
EVENTS_PER_ROW_GROUP = 250_000
NUM_ITEMS = 100_000
MAX_LENGTH = 200
RAY_TIMEOUT_S = 900
SIDES = ("scan", "local", "ray")


def history_lengths(kind: str, num_events: int) -> np.ndarray:
    """History lengths that add up to about `num_events`: Zipf(1.2) up to a window, or geometric with mean 9 from 5."""
    generator = np.random.default_rng(0)
    drawn: list[np.ndarray] = []
    while sum(int(part.sum()) for part in drawn) < num_events:
        size = num_events // 50 + 10
        if kind == "zipf":
            drawn.append(np.minimum(generator.zipf(1.2, size), MAX_LENGTH) + 3)
        else:
            drawn.append(generator.geometric(1 / 5, size) + 4)
    lengths = np.concatenate(drawn)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), num_events)) + 1]


def write_set(folder: Path, lengths: np.ndarray) -> None:
    """A prepared set of random events with these history lengths, in files and row groups of a usual size."""
    generator = np.random.default_rng(1)
    (folder / SEQUENCES_DIR).mkdir(parents=True)
    ends = np.cumsum(lengths)
    file_of, group_of = ends // EVENTS_PER_FILE, ends // EVENTS_PER_ROW_GROUP
    files = []
    for number in np.unique(file_of).tolist():
        name = f"part-{number:05d}.parquet"
        with pq.ParquetWriter(folder / SEQUENCES_DIR / name, SEQUENCES_SCHEMA, compression="zstd") as writer:
            for group in np.unique(group_of[file_of == number]):
                users = np.flatnonzero(group_of == group)
                writer.write_table(_sequences(users, lengths[users], generator))
        files.append(describe_sequence_file(folder, name))
    items = np.arange(1, NUM_ITEMS + 1)
    nothing = pa.nulls(NUM_ITEMS, pa.string())
    columns = [pa.array(items), pa.array(items), pa.array(items), pa.array(items), nothing, nothing]
    pq.write_table(pa.table(columns, schema=items_schema(pa.int64())), folder / ITEMS_FILE)
    ids = pa.array(np.arange(len(lengths)))
    pq.write_table(pa.table([ids, ids], schema=users_schema(pa.int64())), folder / USERS_FILE)
    save_manifest(
        folder,
        Manifest(
            num_users=len(lengths),
            num_items=NUM_ITEMS,
            num_events=int(lengths.sum()),
            num_train_events=int(np.maximum(lengths - 2, 0).sum()),
            has_times=True,
            time_range=(0, 10**9),
            length_histogram={},
            split=LeaveOneOutSplit(),
            files=tuple(files),
            config={},
            content_hash=content_hash(folder, files, LeaveOneOutSplit()),
        ),
    )


def _sequences(users: np.ndarray, lengths: np.ndarray, generator: np.random.Generator) -> pa.Table:
    borders = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    count = int(lengths.sum())
    times = np.sort(generator.integers(0, 10**9, count))
    lists = [generator.integers(1, NUM_ITEMS + 1, count, dtype=np.int32), times, np.ones(count, dtype=np.uint8)]
    columns = [pa.ListArray.from_arrays(borders, pa.array(values)) for values in lists]
    return pa.table([pa.array(users), pa.array(lengths, pa.int32()), *columns], schema=SEQUENCES_SCHEMA)


def scan(plan: Plan) -> dict[str, float]:
    """Events a second of reading the columns that training reads, in file order."""
    started_at, events = time.perf_counter(), 0
    for group in plan.row_groups:
        columns = ["user", "length", "items", "times", "actions"]
        events += int(read_row_group(plan.spec.folder, group.path, group.group, columns)["length"].to_numpy().sum())
    seconds = time.perf_counter() - started_at
    return {"events_per_s": events / seconds, "seconds": seconds}


def consume(tables: Iterator[pa.Table], span: dict[str, int], parts: int, requested_at: float) -> dict[str, float]:
    """Tokens and micro-batches of a worker's stream, and the Unix times of its first and last batch."""
    from genrec.data.stream import worker_batches

    tokens = batches = 0
    first_at = 0.0
    for _, batch in worker_batches(tables, **span, parts=parts):
        first_at = first_at or time.time()
        tokens += batch.num_tokens
        batches += 1
    return {"tokens": tokens, "batches": batches, "first_batch_s": first_at - requested_at, "end": time.time()}


def local(plan: Plan, end_step: int) -> dict[str, float]:
    """Tokens a second of the in-process reader, one worker."""
    from genrec.data.stream import local_tables

    span = {"start_step": 0, "end_step": end_step, "rank": 0, "workers": 1}
    requested_at = time.time()
    done = consume(local_tables(plan, **span), span, plan.spec.rule.micro_batches_per_step, requested_at)
    seconds = done["end"] - requested_at
    return {"events_per_s": done["tokens"] / seconds, "first_batch_s": done["first_batch_s"], "seconds": seconds}


def through_ray(plan: Plan, end_step: int, workers: int) -> dict[str, float]:
    """Tokens a second over all workers, from the first batch of any to the last of all, and the wait for the first."""
    import ray
    import ray.data
    from ray import cloudpickle

    from genrec.data.ray_session import ensure_ray
    from genrec.data.ray_stream import lay_out, ray_tables, remaining_chunks

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a script
    ensure_ray()
    parts = plan.spec.rule.micro_batches_per_step

    @ray.remote(num_cpus=0.25)
    class Consumer:
        def ready(self) -> None:
            import genrec.data.stream  # torch is loaded before the clock starts, as in a training worker  # noqa: F401

        def run(self, shard: Any, rank: int, requested_at: float) -> dict[str, float]:
            span = {"start_step": 0, "end_step": end_step, "rank": rank, "workers": workers}
            return consume(ray_tables(shard), span, parts, requested_at)

    consumers = [Consumer.remote() for _ in range(workers)]
    ray.get([consumer.ready.remote() for consumer in consumers], timeout=RAY_TIMEOUT_S)
    requested_at = time.time()
    dataset = lay_out(remaining_chunks(plan, start_step=0, end_step=end_step), plan.spec, workers)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    shards = dataset.streaming_split(workers, equal=True)
    runs = [consumer.run.remote(shards[rank], rank, requested_at) for rank, consumer in enumerate(consumers)]
    done = ray.get(runs, timeout=RAY_TIMEOUT_S)
    for consumer in consumers:
        ray.kill(consumer)
    first = min(one["first_batch_s"] for one in done)
    seconds = max(one["end"] for one in done) - requested_at - first
    return {
        "events_per_s": sum(one["tokens"] for one in done) / seconds,
        "first_batch_s": max(one["first_batch_s"] for one in done),
        "seconds": seconds,
    }


def synthetic_config(folder: Path, arguments: argparse.Namespace) -> ExperimentConfig:
    """A config over a set that this benchmark writes."""
    prepared = folder / f"{arguments.lengths}-{arguments.events}"
    write_set(prepared, history_lengths(arguments.lengths, arguments.events))
    return config_from_dict(
        {
            "name": "ingest",
            "seed": 1,
            "data": {"source": {"name": "synthetic"}, "prepared": str(prepared)},
            "sequence": {"max_length": MAX_LENGTH},
            "batch": {"tokens_per_step": 16_384, "micro_batches_per_step": 2},
            "model": {"name": "sasrec"},
            "loss": {"name": "full-softmax"},
            "train": {"max_epochs": 1},
        }
    )


def measure(config: ExperimentConfig, arguments: argparse.Namespace) -> Result:
    """Every side in turn, `rounds` times."""
    planned_at = time.perf_counter()
    plan = make_plan(config)
    end_step = plan.num_steps(config.train.max_epochs, config.train.max_steps)
    plan_s = time.perf_counter() - planned_at
    rows: list[Row] = []
    for number in range(arguments.rounds):
        for side in arguments.only:
            if side == "scan":
                reading = scan(plan)
            elif side == "local":
                reading = local(plan, end_step)
            else:
                reading = through_ray(plan, end_step, arguments.workers)
            rows.append({"round": number, "side": side, **reading, "load_average_1_min": os.getloadavg()[0]})
            print(f"{rows[-1]}", flush=True)
    medians: dict[str, Any] = {"plan_s": plan_s, "steps": end_step}
    for side in arguments.only:
        of_side = [row for row in rows if row["side"] == side]
        for key in ("events_per_s", "first_batch_s"):
            found = summarize(float(row[key] or 0) for row in of_side if key in row)
            medians[f"{side}_{key}"] = asdict(found) if found else None
    if "scan" in arguments.only:
        for side in set(arguments.only) - {"scan"}:
            scanned = medians["scan_events_per_s"]["median"]
            medians[f"{side}_over_scan"] = medians[f"{side}_events_per_s"]["median"] / scanned
    return result_of(
        __file__,
        config=config.model_dump(mode="json"),
        rows=rows,
        medians=medians,
        packages=("torch", "ray", "pyarrow", "numpy"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", help="a config whose prepared set is read, instead of a set made for the purpose")
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the set that is made")
    parser.add_argument("--lengths", choices=["zipf", "beauty"], default="zipf", help="its history lengths")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, help="train so many steps with `genrec train`, and report data wait")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="genrec-ingest-") as folder:
        if arguments.config:
            config = load_config(arguments.config, arguments.overrides)
            load_manifest(config.data.prepared)
        else:
            config = synthetic_config(Path(folder), arguments)
        result = measure(config, arguments)
    if arguments.train_steps and arguments.config:
        from overhead import train_steps

        result.medians["training"] = train_steps(arguments.config, arguments.overrides, arguments.train_steps)
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
