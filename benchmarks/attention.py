"""Time of attention, forward and backward, by length: every kernel that genrec has, beside the plain formula.

    python benchmarks/attention.py [--lengths 50 200 800] [--tokens 6400] [--rounds 5] [--device cpu] [--threads 1]

All sequences have one length, and `--tokens` is shared out over them, so the arithmetic outside attention would be the
same at every length. Kernels of softmax attention: `genrec` (written out on a CPU), `library` (torch's fused one, group
by group). Kernels of HSTU's: `genrec`. Each has its `reference`, the formula with all weights in memory and torch's own
backward pass; outputs and gradients are compared with it before anything is timed. All kernels of a length take turns.
Where the reference or a kernel has no memory left, the row says so.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.bench.result import Result, Row, summarize, write_result
from genrec.models.attention import causal_softmax_attention, library_attention
from genrec.models.hstu_attention import (
    NUM_TIME_BUCKETS,
    AttentionBias,
    AttentionForm,
    causal_biased_attention,
    time_buckets,
)
from genrec.models.jagged import JaggedLayout, jagged_layout
from script import options_of, out_of_memory_row, result_of, run_script

Kernel = Callable[[Tensor], Tensor]
"""Rows of q, k, v [num_tokens, heads * 3 * dim] (HSTU: v, q, k) to [num_tokens, heads * dim]."""

REFERENCE = "reference"
TOLERANCE = 1e-3


def heads_of(rows: Tensor, length: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of `rows`, each [sequences, heads, length, dim]."""
    parts = rows.view(-1, length, heads, rows.shape[1] // heads).transpose(1, 2)
    first, second, third = parts.chunk(3, dim=3)
    return first, second, third


def rows_of(attended: Tensor) -> Tensor:
    """[sequences, heads, length, dim] as rows [num_tokens, heads * dim]."""
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def softmax_kernels(length: int, heads: int, layout: JaggedLayout) -> dict[str, Kernel]:
    """Kernels of softmax(q k^T / sqrt(dim)) v."""

    def reference(rows: Tensor) -> Tensor:
        q, k, v = heads_of(rows, length, heads)
        future = torch.full((length, length), -math.inf, device=rows.device).triu_(1)
        return rows_of(torch.softmax(q @ k.mT / math.sqrt(q.shape[3]) + future, dim=3) @ v)

    return {
        REFERENCE: reference,
        "genrec": lambda rows: causal_softmax_attention(rows, layout),
        "library": lambda rows: layout.unpad(library_attention(layout.pad(rows), layout, 0.0)),
    }


def hstu_kernels(length: int, heads: int, dim: int, layout: JaggedLayout) -> dict[str, Kernel]:
    """Kernels of SiLU(q k^T + bias of position + bias of time) v / length."""
    device = layout.positions.device
    generator = torch.Generator().manual_seed(1)
    num_tokens = layout.positions.shape[0]
    times = torch.randint(0, 100, (num_tokens,), generator=generator).cumsum(0).to(device)
    position, table = (torch.randn(n, generator=generator).to(device) * 0.02 for n in (length, NUM_TIME_BUCKETS))
    bias = AttentionBias(table, position, time_buckets(times, times, layout))
    form = AttentionForm(dim, "silu", 1.0, float(length))
    # Of one length there is one group, whose sequences keep their order: tiles are rows of the whole square.
    gaps = (times.view(-1, length, 1) - times.view(-1, 1, length)).abs().clamp(min=1)
    buckets = (gaps.float().log() / 0.301).long().clamp(max=NUM_TIME_BUCKETS - 1)
    distances = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0).to(device)
    past = torch.ones(length, length, device=device).tril_()

    def reference(rows: Tensor) -> Tensor:
        v, q, k = heads_of(rows, length, heads)
        scores = q @ k.mT + (table[buckets] + position[distances]).unsqueeze(1)
        return rows_of(F.silu(scores) * past @ v / length)

    return {REFERENCE: reference, "genrec": lambda rows: causal_biased_attention(rows, layout, bias, form)}


def run(kernel: Kernel, rows: Tensor, direction: str) -> Tensor:
    """One pass; `backward` has the forward pass in it, and returns the gradient."""
    if direction == "forward":
        with torch.no_grad():
            return kernel(rows)
    leaf = rows.detach().requires_grad_()
    kernel(leaf).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def measure(arguments: argparse.Namespace) -> Result:
    """Milliseconds of every kernel at every length, and how many times the reference's speed that is."""
    torch.set_num_threads(arguments.threads)
    device, heads, dim = torch.device(arguments.device), arguments.heads, arguments.dim
    rows: list[Row] = []
    medians: dict[str, Any] = {}
    for length in arguments.lengths:
        sequences = max(1, arguments.tokens // length)
        layout = jagged_layout(torch.arange(0, sequences * length + 1, length).to(device), heads)
        torch.manual_seed(0)
        inputs = torch.randn(sequences * length, heads * 3 * dim, device=device) * 0.3
        families = {
            "softmax": softmax_kernels(length, heads, layout),
            "hstu": hstu_kernels(length, heads, dim, layout),
        }
        for family, kernels in families.items():
            for direction in ("forward", "backward"):
                told: Row = {"attention": family, "direction": direction, "length": length}
                try:
                    check(kernels, inputs, direction, f"{family} {direction} at length {length}")
                    found = time_kernels(kernels, inputs, direction, arguments.rounds)
                except (MemoryError, RuntimeError) as error:
                    rows.append({**told, **out_of_memory_row(error)})
                    continue
                for name, readings in found.items():
                    key: Row = {**told, "kernel": name, "status": "ok"}
                    rows += [{**key, "round": n, "seconds": seconds} for n, seconds in enumerate(readings)]
                    ratios = summarize(slow / own for slow, own in zip(found[REFERENCE], readings, strict=True))
                    seconds, label = summarize(readings), f"{family} {direction} {length} {name}"
                    assert seconds is not None and ratios is not None
                    medians[label] = {"seconds": asdict(seconds), "times_reference": asdict(ratios)}
                    print(f"{label}: {1_000 * seconds.median:.2f} ms, {ratios.median:.2f} x reference", flush=True)
    return result_of(
        __file__,
        config={name: getattr(arguments, name) for name in ("lengths", "tokens", "heads", "dim", "device", "threads")},
        rows=rows,
        medians=medians,
        packages=("torch",),
        machine={"gpu": torch.cuda.get_device_name() if device.type == "cuda" else None},
    )


def check(kernels: dict[str, Kernel], inputs: Tensor, direction: str, what: str) -> None:
    """Raises ValueError when a kernel does not compute what the reference does."""
    expected = run(kernels[REFERENCE], inputs, direction)
    for name, kernel in kernels.items():
        error = float((run(kernel, inputs, direction) - expected).norm() / expected.norm())
        if not error < TOLERANCE:
            raise ValueError(f"{name} is off by {error:.2g} for {what}, at most {TOLERANCE:g} is right")


def time_kernels(kernels: dict[str, Kernel], inputs: Tensor, direction: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kernel in each round; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(rounds):
        for name, kernel in kernels.items():
            started_at = wait(inputs)
            run(kernel, inputs, direction)
            found[name].append(wait(inputs) - started_at)
    return found


def wait(tensor: Tensor) -> float:
    """The clock, when the device has done what it was given."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 800])
    parser.add_argument("--tokens", type=int, default=6_400, help="of all sequences together")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=32, help="of a head")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    write_result(arguments.json, measure(arguments))
    print(json.dumps({"result": arguments.json, "load_average_1_min": os.getloadavg()[0]}))


if __name__ == "__main__":
    run_script(main)
