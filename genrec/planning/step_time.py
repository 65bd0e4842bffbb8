"""How long a step takes, and what it waits for: `predict_step`.

    compute         FLOPs of a worker's share / calibrated rate (a loss of fp32 beside bf16 layers: slower); on a CPU
                    also the bytes that are kept for the backward pass / another rate, for the element-wise parts; and
                    an overhead for each micro-batch
    communication   bytes that a worker sends / bandwidth of its link
    optimizer       bytes of weights, gradients and moments that are read and written / memory bandwidth; on a CPU
                    ZeRO-1 to 3 also copy them to flat buffers and back
    data            events / rate of the stream, beside the step: it counts only where it is longer than all else

A ring of N workers sends (N - 1) / N of a tensor for a reduce-scatter or an all-gather, twice that for an all-reduce.
E n are the bytes of the gradients, A the micro-batches that a worker adds up:

    torch, ZeRO-0   all-reduce E n a step
    ZeRO-1          all-reduce E n, all-gather E n a step            (DeepSpeed all-reduces and keeps its own part)
    ZeRO-2          all-reduce E n a micro-batch, all-gather E n a step
    ZeRO-3          all-gather of the layers' weights twice and of the item table four times, reduce-scatter E n, each a
                    micro-batch; on GPUs DeepSpeed does this beside the computation, and only what is longer counts
"""

from dataclasses import dataclass
from math import log2

from genrec.config import ExperimentConfig
from genrec.planning.calibration import Calibration
from genrec.planning.flops import StepFlops
from genrec.planning.machine import HOST_LINK_BYTES_PER_S, Machine
from genrec.planning.memory import sharding_of
from genrec.planning.model_size import ModelSize

STREAM_EVENTS_PER_S = 2e6
"""Events that a worker's stream hands over (benchmarks/README.md, ingest); rows of micro-batches on one core."""

COLLECTIVE_S = 30e-6
"""Start of a collective, for each doubling of the workers."""

RECOMPUTE = 4 / 3

ENGINE_OVERHEAD = {None: 1.0, 0: 1.2, 1: 1.3, 2: 1.3, 3: 2.0}
"""Overhead of a micro-batch by ZeRO stage, beside plain PyTorch's: hooks on gradients, at stage 3 on modules too."""


COPIED_BYTES = 50.0
"""Of a weight, what ZeRO-1 to 3 copy on a CPU in a step: gradients into a bucket, weights and masters back and forth.

Fitted to the cases of benchmarks/matrices/memory.yaml, on one machine.
"""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What all workers do in a mean step: FLOPs, events, and bytes that pass through the element-wise parts."""

    flops: StepFlops
    tokens: float
    kept_bytes: float

    def times(self, ratio: float) -> "StepWork":
        """The same for a part of the workers."""
        f = self.flops
        parts = (f.projections, f.attention, f.feed_forward, f.other, f.loss)
        return StepWork(StepFlops(*(part * ratio for part in parts)), self.tokens * ratio, self.kept_bytes * ratio)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step on the slowest worker, and bytes that it sends."""

    compute: float
    communication: float
    optimizer: float
    overhead: float
    data: float
    sent_bytes: float

    @property
    def total(self) -> float:
        """Seconds of the step: the data stream runs beside everything else."""
        return max(self.compute + self.communication + self.optimizer + self.overhead, self.data)

    @property
    def bottleneck(self) -> str:
        """The part that takes the longest."""
        parts = {
            "compute": self.compute,
            "communication": self.communication,
            "optimizer": self.optimizer,
            "overhead": self.overhead,
        }
        if self.data >= sum(parts.values()):
            return "data"
        return max(parts, key=lambda name: parts[name])


def sent_bytes(config: ExperimentConfig, size: ModelSize, workers: int) -> float:
    """Bytes that one worker sends in a step."""
    if workers == 1:
        return 0.0
    sharding, accumulation = sharding_of(config, workers), config.accumulation(workers)
    ring, whole = (workers - 1) / workers, sharding.weight_bytes * size.total
    if sharding.stage in (None, 0):
        return 2 * ring * whole
    if sharding.stage in (1, 2):
        reductions = 1 if sharding.stage == 1 else accumulation
        return ring * whole * (2 * reductions + 1)
    gathered = sharding.weight_bytes * (2 * (size.other - size.whole) + 4 * size.table)
    return ring * accumulation * (gathered + whole) + ring * sharding.weight_bytes * size.whole


def predict_step(
    config: ExperimentConfig,
    size: ModelSize,
    work: StepWork,
    *,
    machine: Machine,
    calibration: Calibration,
    nodes: int | None = None,
) -> StepTime:
    """The time of a step of some work, on `nodes` of the machine (None: all)."""
    used = machine.nodes if nodes is None else nodes
    workers = used * machine.workers_per_node
    sharding, accumulation = sharding_of(config, workers), config.accumulation(workers)
    recomputes = getattr(config.model, "recompute", "none") != "none"
    again, flops = (RECOMPUTE if recomputes else 1), work.flops
    of_loss = flops.loss * machine.loss_slowdown
    compute = ((flops.total - flops.loss) * again + of_loss) / workers / calibration.flops_per_s
    if calibration.kept_bytes_per_s is not None:
        compute += work.kept_bytes * again / workers / calibration.kept_bytes_per_s
    sent = sent_bytes(config, size, workers)
    collectives = (accumulation if sharding.stage in (2, 3) else 1) * (
        2 + 6 * config.model.num_layers * (sharding.stage == 3)
    )
    communication = 0.0
    if workers > 1:
        communication = sent / machine.link_bytes_per_s(used) + collectives * COLLECTIVE_S * log2(workers)
    if sharding.stage == 3 and machine.on_gpu:
        communication = max(0.0, communication - compute)
    share = workers if sharding.stage in (1, 2, 3) else 1
    touched = 4 * (3 * size.total + 2 * (size.table_moments + size.other_moments)) / share
    copied = 0.0 if machine.on_gpu or sharding.stage in (None, 0) else COPIED_BYTES * size.total
    optimizer = (touched + copied) / machine.bytes_per_s
    if sharding.offload:
        optimizer = (
            touched / (machine.bytes_per_s / 50)
            + 2 * sharding.weight_bytes * size.total / share / HOST_LINK_BYTES_PER_S
        )
    return StepTime(
        compute=compute,
        communication=communication,
        optimizer=optimizer,
        overhead=accumulation * calibration.overhead_s * ENGINE_OVERHEAD[sharding.stage],
        data=work.tokens / workers / STREAM_EVENTS_PER_S,
        sent_bytes=sent,
    )
