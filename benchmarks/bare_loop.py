"""A bare PyTorch loop over a config's own micro-batches: events a second of forward, backward and AdamW, as JSON.

    python benchmarks/bare_loop.py configs/quickstart.yaml [section.field=value ...] --seconds 30
    torchrun --standalone --nproc-per-node 2 benchmarks/bare_loop.py configs/quickstart.yaml --seconds 30

There is no Ray, no DeepSpeed and nothing of genrec's loop. The micro-batches of `STEPS` steps are in memory before the
clock starts and are gone through again and again. Alone, a process has all cores; under torchrun each has its share, as
genrec's workers have, its own micro-batches of every step, and the model in a DistributedDataParallel over gloo. Both
compute what genrec computes, step for step: the same weights, dropout and negatives, the loss divided by the weight of
the whole step. CPUs and fp32 only.
"""

import argparse
import json
import os
import time
from contextlib import nullcontext
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from genrec.bench.worker import end_with_parent
from genrec.config import ExperimentConfig, load_config
from genrec.data.batch import Batch
from genrec.data.manifest import load_manifest
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.data.target_actions import target_rule
from genrec.training.loop import seed_micro_batch
from genrec.training.optim import build_optimizer
from genrec.training.worker import new_model, set_threads

WARMUP_STEPS = 5
STEPS = 40
LOOK_STEPS = 4
"""How often the workers agree on whether time is up."""


def bare_loop(config: ExperimentConfig, seconds: float, group: tuple[int, int] | None = None) -> dict[str, float]:
    """Events a second of all workers, and the loss of a target in the last step of the warm-up.

    `group` is the rank and the number of workers under torchrun; None is one process with all cores.
    """
    rank, workers = group or (0, 1)
    set_threads(config, workers)
    if group is None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    batches = _micro_batches(config, rank, workers)
    model = new_model(config, load_manifest(config.data.prepared)).train()
    optimizer = build_optimizer(model, config.optimizer)
    replica: nn.Module = model if group is None else DistributedDataParallel(model)
    for step in range(WARMUP_STEPS):
        weighed = _step(config, replica, optimizer, batches[step % len(batches)], workers)
    loss = _sum_over(workers, weighed)
    step, events, took, started_at = 0, 0, 0.0, time.perf_counter()
    while took < seconds:
        micro_batches = batches[(WARMUP_STEPS + step) % len(batches)]
        _step(config, replica, optimizer, micro_batches, workers)
        events += micro_batches[0].step_targets
        step += 1
        if step % LOOK_STEPS == 0:
            took = _sum_over(workers, time.perf_counter() - started_at) / workers
    return {"events_per_s": events / took, "loss_after_warmup": loss}


def _micro_batches(config: ExperimentConfig, rank: int, workers: int) -> list[list[Batch]]:
    """A worker's micro-batches of each of the first steps."""
    plan = make_plan(config)
    num_steps = min(STEPS, plan.num_steps(config.train.max_epochs, config.train.max_steps))
    span = {"start_step": 0, "end_step": num_steps, "rank": rank, "workers": workers}
    rule = target_rule(config, load_manifest(config.data.prepared))
    parts = config.batch.micro_batches_per_step
    stream = worker_batches(local_tables(plan, **span), **span, parts=parts, targets=rule)
    return [
        [batch for _, batch in islice(stream, config.accumulation(workers))]  # one step after the other
        for _ in range(num_steps)
    ]


def _step(
    config: ExperimentConfig, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], workers: int
) -> float:
    """One step; this worker's share of its loss. The sum over workers is wanted, and the replica takes their mean."""
    share = 0.0
    for batch in batches:
        seed_micro_batch(config.seed, batch.micro_batch_id)
        last = batch is batches[-1]
        waits = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
        with waits:
            loss = model(batch).loss_sum / batch.step_weight
            (workers * loss).backward()
        share += float(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return share


def _sum_over(workers: int, value: float) -> float:
    if workers == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def main() -> None:
    """Measures, alone or as one of torchrun's workers; worker 0 prints the JSON as its last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    engine = config.engine
    if config.cluster.gpus_per_worker or (engine.precision, engine.matmul_precision) != ("fp32", "highest"):
        raise SystemExit(
            f"The bare loop is for CPUs and fp32, and this config has cluster.gpus_per_worker="
            f"{config.cluster.gpus_per_worker:g}, engine.precision={engine.precision} and engine.matmul_precision="
            f"{engine.matmul_precision}; set 0, fp32 and highest."
        )
    if "WORLD_SIZE" not in os.environ:
        print(json.dumps(bare_loop(config, arguments.seconds)))
        return
    end_with_parent()
    dist.init_process_group("gloo", timeout=timedelta(seconds=config.cluster.collective_timeout_s))
    try:
        found = bare_loop(config, arguments.seconds, (dist.get_rank(), dist.get_world_size()))
        if dist.get_rank() == 0:
            print(json.dumps(found))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
