"""The hardware that a plan is for: this machine, or a cluster that a YAML file describes."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator

from genrec.config import ExperimentConfig
from genrec.config_data import Section
from genrec.config_errors import explain_validation_error, read_yaml
from genrec.errors import ConfigError
from genrec.planning.fit import available_bytes
from genrec.planning.hardware import GPUS, Gpu, Precision, find_gpu, measure_gemm
from genrec.training.products import matmul_precision

CPU_GEMM_FLOPS_PER_CORE = 50e9
"""fp32, where it is not measured: a core of a server of 2020."""

CPU_BYTES_PER_S = 10e9
LOOPBACK_BYTES_PER_S = 1e9
HOST_LINK_BYTES_PER_S = 25e9
"""PCIe 4.0 x16 as it is reached: what an offloaded optimizer's gradients and weights travel over."""

GPU_BYTES_PER_S = 1.5e12


class ClusterFile(Section):
    """A cluster of equal nodes, for `genrec plan --cluster FILE`."""

    nodes: int = Field(ge=1, le=65_536, description="machines")
    gpus_per_node: int = Field(0, ge=0, le=64, description="GPUs of a machine; 0 plans for CPUs")
    gpu: str | None = Field(None, description="name of the GPU: " + ", ".join(GPUS))
    peak_flops: float | None = Field(None, gt=0, description="FLOP/s of a GPU in the run's precision; null is by name")
    gpu_memory_bytes: float | None = Field(None, gt=0, description="memory of a GPU; null is by name")
    cpu_cores_per_node: int = Field(ge=1, description="cores of a machine")
    memory_bytes_per_node: float = Field(gt=0, description="main memory of a machine")
    intra_node_bytes_per_s: float = Field(gt=0, description="between two workers of a machine, each way")
    inter_node_bytes_per_s: float = Field(gt=0, description="in or out of a machine, all its links together")

    @model_validator(mode="after")
    def _known_gpu(self) -> "ClusterFile":
        if not self.gpus_per_node:
            return self
        known = self.gpu is not None and find_gpu(self.gpu) is not None
        if not known and (self.peak_flops is None or self.gpu_memory_bytes is None):
            raise ValueError(
                f"gpu ({self.gpu}) is not in the table ({', '.join(GPUS)}); use one of these, or give peak_flops and "
                "gpu_memory_bytes"
            )
        return self


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan needs to know of the hardware; rates are those of one worker.

    peak_flops             FLOP/s: a GPU's published peak, or the GEMM rate of a CPU worker's threads
    is_published           whether `peak_flops` is a published peak
    memory_bytes           what one worker has
    bytes_per_s            of the memory that the optimizer works in
    loss_slowdown          times that a FLOP of the loss takes longer than one of the model: it is fp32, or TF32, also
                           where the model is bf16
    """

    name: str
    nodes: int
    workers_per_node: int
    on_gpu: bool
    peak_flops: float
    is_published: bool
    memory_bytes: float
    host_memory_bytes: float
    bytes_per_s: float
    intra_node_bytes_per_s: float
    inter_node_bytes_per_s: float
    loss_slowdown: float = 1.0

    @property
    def workers(self) -> int:
        """Workers of the plan."""
        return self.nodes * self.workers_per_node

    def link_bytes_per_s(self, nodes: int) -> float:
        """What a worker sends in a ring over `nodes`: its share of the node's links where there are several."""
        if nodes == 1:
            return self.intra_node_bytes_per_s
        return min(self.intra_node_bytes_per_s, self.inter_node_bytes_per_s / self.workers_per_node)


def read_cluster(path: str | Path, config: ExperimentConfig) -> Machine:
    """The cluster that a file describes, with a worker for each GPU, or the config's workers a node without GPUs."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `setting: value` entries, but it holds {type(values).__name__}.")
    found = explain_validation_error(ClusterFile, values, str(path))
    precision = precision_of(config)
    on_gpu = found.gpus_per_node > 0
    per_node = found.gpus_per_node or max(1, -(-config.cluster.min_workers // found.nodes))
    host = found.memory_bytes_per_node / per_node
    gpu = None if found.gpu is None else find_gpu(found.gpu)
    peak = found.peak_flops
    if peak is None and gpu is not None and on_gpu:
        peak = gpu.peak(precision)
    if not on_gpu:
        peak = peak or CPU_GEMM_FLOPS_PER_CORE * found.cpu_cores_per_node / per_node
    if not peak:
        raise ConfigError(
            f"{path}: gpu {found.gpu} has no {precision} units; set engine.precision=fp32, or peak_flops."
        )
    return Machine(
        name=f"{found.nodes} nodes of {per_node} {found.gpu or 'GPUs'}" if on_gpu else f"{found.nodes} CPU nodes",
        nodes=found.nodes,
        workers_per_node=per_node,
        on_gpu=on_gpu,
        peak_flops=peak,
        is_published=on_gpu,
        memory_bytes=found.gpu_memory_bytes or (gpu.memory_bytes if gpu is not None and on_gpu else host),
        host_memory_bytes=host,
        bytes_per_s=GPU_BYTES_PER_S if on_gpu else CPU_BYTES_PER_S / per_node,
        intra_node_bytes_per_s=found.intra_node_bytes_per_s,
        inter_node_bytes_per_s=found.inter_node_bytes_per_s,
        loss_slowdown=loss_slowdown(config, gpu if on_gpu else None),
    )


def this_machine(config: ExperimentConfig, *, measure: bool) -> Machine:
    """This machine with all workers of the config on it; `measure` takes the rate of a matrix product first."""
    workers = config.cluster.min_workers
    host = available_bytes() / workers
    if config.cluster.gpus_per_worker and torch.cuda.is_available():
        return _local_gpus(config, workers, host)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = config.cluster.threads_per_worker or max(1, cores // workers)
    dtype = torch.bfloat16 if precision_of(config) == "bf16" else torch.float32
    peak = CPU_GEMM_FLOPS_PER_CORE * threads
    if measure:
        with matmul_precision(config):
            peak = measure_gemm(torch.device("cpu"), dtype, threads, size=1_024)
    return Machine(
        name=f"this machine, workers x threads {workers} x {threads}",
        nodes=1,
        workers_per_node=workers,
        on_gpu=False,
        peak_flops=peak,
        is_published=False,
        memory_bytes=host,
        host_memory_bytes=host,
        bytes_per_s=CPU_BYTES_PER_S / workers,
        intra_node_bytes_per_s=LOOPBACK_BYTES_PER_S / workers,
        inter_node_bytes_per_s=LOOPBACK_BYTES_PER_S,
    )


def _local_gpus(config: ExperimentConfig, workers: int, host: float) -> Machine:
    name = torch.cuda.get_device_name()
    gpu, precision = find_gpu(name), precision_of(config)
    peak = None if gpu is None else gpu.peak(precision)
    measured = 0.0
    if not peak:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with matmul_precision(config):
            measured = measure_gemm(torch.device("cuda"), dtype, size=4_096)
    return Machine(
        name=f"this machine, {workers} {name}",
        nodes=1,
        workers_per_node=workers,
        on_gpu=True,
        peak_flops=peak or measured,
        is_published=bool(peak),
        memory_bytes=float(torch.cuda.get_device_properties(0).total_memory),
        host_memory_bytes=host,
        bytes_per_s=GPU_BYTES_PER_S,
        intra_node_bytes_per_s=50e9,
        inter_node_bytes_per_s=50e9,
        loss_slowdown=loss_slowdown(config, gpu),
    )


def precision_of(config: ExperimentConfig) -> Precision:
    """The precision that a model's products are computed in."""
    engine = config.engine
    return "tf32" if engine.precision == "fp32" and engine.matmul_precision != "highest" else engine.precision


def loss_slowdown(config: ExperimentConfig, gpu: Gpu | None) -> float:
    """See `Machine`; 1 where the GPU is unknown, and on a CPU."""
    if gpu is None:
        return 1.0
    of_loss: Precision = "fp32" if config.engine.matmul_precision == "highest" else "tf32"
    return max(1.0, gpu.peak(precision_of(config)) / gpu.peak(of_loss))
