"""What packing gives: budget used, cost spread within steps, padding avoided, and step time against padded batches.

    python benchmarks/packing.py [--lengths ml-1m beauty zipf] [--workers 2 4 8] [--rounds 3] [--steps 10]

`ml-1m` is the prepared set of configs/sasrec_ml1m.yaml; `beauty` (geometric, mean 9, at least 5) and `zipf` (Zipf(1.2)
up to a window) are made for the purpose. `fill` is tokens / (steps * tokens per step) over an epoch. `cost_spread` is
(highest - lowest) / highest cost of the micro-batches of a step, the worst and the mean over an epoch's steps.
`padding` is the share of padding in batches of the same windows that are padded to `sequence.max_length`.

Step times are forward and backward of the same windows, micro-batch by micro-batch, in one process: packed, as
training sees them, and padded on the right to `sequence.max_length`, with padding as tokens that have no target. They
take turns.
"""

import argparse
import os
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from genrec.bench.result import Result, Row, summarize
from genrec.config import ExperimentConfig, config_from_dict, load_config
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.manifest import load_manifest
from genrec.data.micro_batches import RowGroupReader, pack_chunk
from genrec.data.packing import window_cost
from genrec.data.plan import Plan, make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.models.build import build_model
from ingest import history_lengths, write_set
from script import finish, options_of, result_of, run_script

MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"name": "sasrec", "dim": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.2},
    "hstu": {"name": "hstu", "dim": 64, "query_dim": 32, "value_dim": 32, "num_heads": 2, "time_bias": False},
}
MAX_LENGTHS = {"ml-1m": 200, "beauty": 50, "zipf": 200}
TOKENS_PER_MICRO_BATCH = 6_400
NUM_EVENTS = 3_000_000


def prepared_set(kind: str, folder: Path) -> str:
    """The prepared folder with lengths of a kind, made if need be."""
    if kind == "ml-1m":
        return load_config("configs/sasrec_ml1m.yaml").data.prepared
    made = folder / kind
    if not made.exists():
        write_set(made, history_lengths(kind, NUM_EVENTS))
    return str(made)


def config_of(kind: str, prepared: str, workers: int, model: str = "sasrec") -> ExperimentConfig:
    """A config with a micro-batch of `TOKENS_PER_MICRO_BATCH` tokens for each of `workers`."""
    return config_from_dict(
        {
            "name": "packing",
            "seed": 1,
            "data": {"source": {"name": "synthetic"}, "prepared": prepared},
            "sequence": {"max_length": MAX_LENGTHS[kind]},
            "batch": {"tokens_per_step": TOKENS_PER_MICRO_BATCH * workers, "micro_batches_per_step": workers},
            "model": MODELS[model],
            "loss": {"name": "sampled-softmax", "num_negatives": 256},
            "train": {"max_epochs": 1},
        }
    )


def packing_of(plan: Plan) -> dict[str, float]:
    """Fill, cost spread and padding of the first epoch, and events a second of packing it (reading is not counted)."""
    rule, max_length = plan.spec.rule, plan.spec.window.max_length
    steps, tokens, windows, spreads = 0, 0, 0, []
    for chunk in plan.epoch(0):
        packed = pack_chunk(plan.spec, chunk, RowGroupReader(plan.spec.folder))
        lengths = np.diff(packed.event_borders) - 1
        cost = np.add.reduceat(np.append(window_cost(lengths), 0), packed.borders[:-1])
        cost[np.diff(packed.borders) == 0] = 0
        cost = cost.reshape(-1, rule.micro_batches_per_step)
        spreads.append((cost.max(axis=1) - cost.min(axis=1)) / cost.max(axis=1))
        steps, tokens, windows = steps + chunk.num_steps, tokens + int(lengths.sum()), windows + len(lengths)
    spread = np.concatenate(spreads)
    return {
        "steps": steps,
        "fill": tokens / (steps * rule.tokens_per_step),
        "cost_spread_worst": float(spread.max()),
        "cost_spread_mean": float(spread.mean()),
        "padding": 1 - tokens / (windows * max_length),
    }


def padded(batch: Batch, max_length: int) -> Batch:
    """The same windows, each padded on the right to `max_length` tokens without target."""
    lengths = (batch.offsets[1:] - batch.offsets[:-1]).numpy()
    count = len(lengths)
    slots = np.repeat(np.arange(count) * max_length, lengths)
    slots += np.arange(batch.num_tokens) - np.repeat(batch.offsets[:-1].numpy(), lengths)
    items, targets = np.ones(count * max_length, dtype=np.int64), np.full(count * max_length, -1)
    items[slots], targets[slots] = batch.items.numpy(), batch.targets.numpy()
    offsets = np.arange(count + 1) * max_length
    return batch_from_arrays(items, offsets, targets=targets)


def compute(model: nn.Module, batches: list[Batch], targets: int) -> np.ndarray:
    """Seconds of forward and backward a micro-batch: on the clock, and of processor time over all threads."""
    started_at = np.array([time.perf_counter(), time.process_time()])
    for batch in batches:
        (model(batch).loss_sum / targets).backward()
        model.zero_grad(set_to_none=True)
    return (np.array([time.perf_counter(), time.process_time()]) - started_at) / len(batches)


def step_times(config: ExperimentConfig, num_micro_batches: int, rounds: int) -> dict[str, Any]:
    """Seconds a micro-batch, packed and padded, and their ratio by the clock and in processor time."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    stream = worker_batches(local_tables(plan, **span), **span, parts=config.batch.micro_batches_per_step)
    packed = [batch for _, batch in islice(stream, num_micro_batches)]
    wide = [padded(batch, config.sequence.max_length) for batch in packed]
    targets = sum(int((batch.targets >= 0).sum()) for batch in packed)
    model = build_model(config, load_manifest(config.data.prepared).num_items)
    model.train()
    times: dict[str, list[np.ndarray]] = {"packed": [], "padded": []}
    for batches in (packed, wide):
        compute(model, batches[:1], targets)  # warm-up
    for _ in range(rounds):
        for side, batches in (("packed", packed), ("padded", wide)):
            times[side].append(compute(model, batches, targets))
    result: dict[str, Any] = {f"{side}_s": median(float(wall) for wall, _ in times[side]) for side in times}
    for number, kind in enumerate(("wall", "cpu")):
        ratios = [float((b / a)[number]) for a, b in zip(times["packed"], times["padded"], strict=True)]
        found = summarize(ratios)
        result[f"padded_over_packed_{kind}"] = asdict(found) if found else None
    return result


def measure(arguments: argparse.Namespace, folder: Path) -> Result:
    """Packing of every kind of lengths and number of workers, and step times of both models."""
    rows: list[Row] = []
    medians: dict[str, Any] = {}
    for kind in arguments.lengths:
        prepared = prepared_set(kind, folder)
        for workers in arguments.workers:
            found = packing_of(make_plan(config_of(kind, prepared, workers)))
            rows.append({"lengths": kind, "workers": workers, **found})
            medians[f"{kind}_{workers}_workers"] = found
            print(rows[-1], flush=True)
        for model in MODELS if arguments.steps else ():
            times = step_times(config_of(kind, prepared, 1, model), arguments.steps, arguments.rounds)
            rows.append({"lengths": kind, "model": model, "packed_s": times["packed_s"], "padded_s": times["padded_s"]})
            rows[-1]["load_average_1_min"] = os.getloadavg()[0]
            medians[f"{kind}_{model}"] = times
            print(rows[-1], times, flush=True)
    return result_of(
        __file__,
        config={kind: config_of(kind, kind, 2).model_dump(mode="json") for kind in arguments.lengths},
        rows=rows,
        medians=medians,
        packages=("torch", "numpy", "pyarrow"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--lengths", nargs="+", choices=list(MAX_LENGTHS), default=list(MAX_LENGTHS))
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="micro-batches whose step time is taken; 0 takes none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="genrec-packing-") as folder:
        result = measure(arguments, Path(folder))
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
