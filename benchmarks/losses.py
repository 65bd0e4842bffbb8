"""Events a second of every loss over a catalogue, beside the softmax whose logits exist all at once.

    python benchmarks/losses.py [--items 3416] [--dims 64 128] [--rounds 5] [--only full own-256] [--threads 1]
    python benchmarks/losses.py --only full deepspeed-linear deepspeed-chunked
    python benchmarks/losses.py --only full --matmul-precision medium

The catalogue is as large as MovieLens-1M's. A step is forward, backward and AdamW of SASRec (2 layers, 2 heads, dropout
0.2) over 32 windows of 200 random events, 6,400 targets, in this process. `loss` times the loss alone, forward and
backward, on hidden states of the same shape. `materialised` is `cross_entropy(hidden @ table.T)` in fp32, as a plain
implementation has it, and the two `deepspeed-` ones are DeepSpeed's own full softmaxes over the same scores: `linear`
keeps no logits and computes them again in its backward pass, `chunked` is given all logits. All losses take turns in
every round; `times_materialised` is the ratio within a round, by processor time, which a busy machine disturbs less
than the clock. A loss that has no memory left is a row that says so and is left out from then on.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy
from deepspeed.sequence.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from torch import Tensor, nn

from genrec.bench.result import Result, Row, summarize, write_result
from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import Batch, batch_from_arrays
from genrec.models.build import build_model
from genrec.models.item_table import ItemTable
from script import options_of, out_of_memory_row, result_of, run_script

NUM_WINDOWS, LENGTH = 32, 200
NUM_TARGETS = NUM_WINDOWS * LENGTH
MATERIALISED = "materialised"
LOSSES: dict[str, dict[str, Any]] = {
    "full": {"name": "full-softmax"},
    "full-learned-temperature": {"name": "full-softmax", "learn_temperature": True},
    "shared-256": {"name": "sampled-softmax"},
    "shared-1024": {"name": "sampled-softmax", "num_negatives": 1_024},
    "own-256": {"name": "sampled-softmax", "per_position": True},
    "popularity-1024": {"name": "sampled-softmax", "num_negatives": 1_024, "negatives": "popularity"},
    "in-batch-16384": {"name": "sampled-softmax", "num_negatives": 16_384, "negatives": "in-batch"},
    "mixed-1024": {"name": "sampled-softmax", "num_negatives": 1_024, "negatives": "mixed"},
    "gbce-own-256": {"name": "gbce"},
    "gbce-shared-256": {"name": "gbce", "per_position": False},
    "bce-1": {"name": "bce"},
}


def materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The plain loss: all logits of all targets in fp32, kept for the backward pass."""
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def deepspeed_linear(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """DeepSpeed's fused projection and cross entropy: a block of logits at a time, twice."""
    loss: Tensor = vocab_parallel_linear_cross_entropy(hidden, weight, targets, reduction="sum")
    return loss


def deepspeed_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """DeepSpeed's cross entropy over logits that exist, without a second fp32 copy of them."""
    loss: Tensor = chunked_cross_entropy(hidden @ weight.T, targets, reduction="sum")
    return loss


OTHERS = {MATERIALISED: materialised, "deepspeed-linear": deepspeed_linear, "deepspeed-chunked": deepspeed_chunked}


class OtherSoftmax(nn.Module):
    """A full softmax of somebody else's, called as genrec's losses are."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: ItemTable,
        pool: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets]; all count alike."""
        loss: Tensor = item_table(lambda weight: self.function(hidden, weight, targets))
        return loss


def config_of(dim: int, loss: dict[str, Any]) -> ExperimentConfig:
    """A SASRec config with a loss."""
    return config_from_dict(
        {
            "name": "losses",
            "data": {"source": {"name": "synthetic"}, "prepared": "none"},
            "sequence": {"max_length": LENGTH},
            "model": {"name": "sasrec", "dim": dim, "num_layers": 2, "num_heads": 2, "dropout": 0.2},
            "loss": loss,
            "train": {"max_steps": 1},
        }
    )


def random_batch(num_items: int, num_pool: int) -> Batch:
    """Windows of random items, with a pool of a step of four such micro-batches."""
    items, targets = (torch.randint(1, num_items + 1, (NUM_TARGETS,)).numpy() for _ in range(2))
    batch = batch_from_arrays(items, torch.arange(0, NUM_TARGETS + 1, LENGTH).numpy(), targets=targets)
    pool = torch.randint(1, num_items + 1, (min(num_pool, 4 * NUM_TARGETS),)) if num_pool else None
    return replace(batch, negatives=pool)


class Contender:
    """One loss at one width: what is timed."""

    def __init__(self, name: str, dim: int, num_items: int) -> None:
        torch.manual_seed(0)
        config = config_of(dim, LOSSES.get(name, LOSSES["full"]))
        self.model = build_model(config, num_items)
        if name in OTHERS:
            self.model.loss = OtherSoftmax(OTHERS[name])
        self.model.item_table.train_counts = torch.randint(1, 1_000, (num_items + 1,))
        self.batch = random_batch(num_items, config.loss.num_in_batch)
        self.hidden = torch.randn(NUM_TARGETS, dim, requires_grad=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def step(self) -> None:
        """A training step."""
        (self.model(self.batch).loss_sum / NUM_TARGETS).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> None:
        """The loss alone, forward and backward."""
        loss = self.model.loss(self.hidden, self.batch.targets, self.model.item_table, self.batch.negatives)
        (loss / NUM_TARGETS).backward()
        self.hidden.grad = None
        self.optimizer.zero_grad(set_to_none=True)


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """By the clock, and of processor time over all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(arguments: argparse.Namespace) -> Result:
    """Every loss at every width: events a second, and the ratio to the materialised softmax of the same round."""
    torch.set_num_threads(arguments.threads)
    names = [MATERIALISED, *(arguments.only or [*LOSSES, *list(OTHERS)[1:]])]
    rows: list[Row] = []
    medians: dict[str, Any] = {}
    for dim in arguments.dims:
        contenders = {name: Contender(name, dim, arguments.items) for name in names}
        ratios: dict[str, dict[str, list[float]]] = {name: {"loss": [], "step": []} for name in names}
        for number in range(-1, arguments.rounds):  # the first round is a warm-up
            plain: dict[str, float] = {}
            for name, contender in list(contenders.items()):
                for what, run in (("loss", contender.loss), ("step", contender.step)):
                    row: Row = {"dim": dim, "loss": name, "what": what, "round": number}
                    torch.set_float32_matmul_precision(
                        "highest" if name == MATERIALISED else arguments.matmul_precision
                    )
                    try:
                        wall, processor = seconds(run)
                    except (MemoryError, RuntimeError) as error:
                        rows.append({**row, **out_of_memory_row(error)})
                        del contenders[name]
                        break
                    if name == MATERIALISED:
                        plain[what] = processor
                    if number < 0:
                        continue
                    row |= {"status": "ok", "events_per_s": NUM_TARGETS / wall}
                    row |= {"events_per_cpu_s": NUM_TARGETS / processor, "load_average_1_min": os.getloadavg()[0]}
                    rows.append(row)
                    if what in plain:
                        ratios[name][what].append(plain[what] / processor)
        torch.set_float32_matmul_precision("highest")
        for name, found in ratios.items():
            key = f"{name} dim {dim}"
            medians[key] = {}
            for what, values in found.items():
                rates = [
                    r.get("events_per_cpu_s") for r in rows if (r["dim"], r["loss"], r["what"]) == (dim, name, what)
                ]
                rate, ratio = summarize([float(r) for r in rates if r is not None]), summarize(values)
                medians[key][f"{what}_events_per_cpu_s"] = None if rate is None else round(rate.median)
                medians[key][f"{what}_times_materialised"] = None if ratio is None else asdict(ratio)
            print(key, json.dumps(medians[key]), flush=True)
    return result_of(
        __file__,
        config={name: getattr(arguments, name) for name in ("items", "threads", "matmul_precision")}
        | {"losses": LOSSES},
        rows=rows,
        medians=medians,
        packages=("torch", "deepspeed"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--items", type=int, default=3_416)
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="+", choices=[*LOSSES, *list(OTHERS)[1:]], help="these losses beside the materialised one"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matmul-precision", choices=["highest", "high", "medium"], default="highest")
    arguments = parser.parse_args()
    write_result(arguments.json, measure(arguments))


if __name__ == "__main__":
    run_script(main)
