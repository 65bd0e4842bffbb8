"""What hardware can do: published peaks and memory of GPUs, and the rate of a matrix product measured here.

A utilisation says what it is a part of (`Mfu.of`): the published peak of a GPU, or, where there is none (CPUs and GPUs
that are not in the table), the rate of a large matrix product measured in the same run.
"""

import re
import time
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]

PUBLISHED = "of the published peak"
MEASURED = "of the GEMM rate measured in the same run"

GEMM_SIZE = 2_048
GEMM_S = 0.3


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker publishes it, without sparsity.

    bf16_flops    dense bf16 peak, FLOP/s
    fp32_flops    dense fp32 peak of the ordinary units, FLOP/s: PyTorch uses no TF32 unless it is asked to
    memory_bytes  device memory
    """

    bf16_flops: float
    fp32_flops: float
    memory_bytes: int

    def peak(self, precision: Precision) -> float:
        """Dense peak, FLOP/s: TF32 has half of bf16's where there are such units; 0 where there are none for bf16."""
        if precision == "tf32":
            return self.bf16_flops / 2 or self.fp32_flops
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


_GB = 10**9
GPUS: dict[str, Gpu] = {
    "GB200": Gpu(2.5e15, 80e12, 186 * _GB),
    "B200": Gpu(2.25e15, 75e12, 180 * _GB),
    "H200": Gpu(989e12, 67e12, 141 * _GB),
    "H100": Gpu(989e12, 67e12, 80 * _GB),
    "A100-40GB": Gpu(312e12, 19.5e12, 40 * _GB),
    "A100": Gpu(312e12, 19.5e12, 80 * _GB),
    "L40S": Gpu(362e12, 91.6e12, 48 * _GB),
    "L40": Gpu(181e12, 90.5e12, 48 * _GB),
    "L4": Gpu(121e12, 30.3e12, 24 * _GB),
    "A10": Gpu(125e12, 31.2e12, 24 * _GB),
    "V100": Gpu(0.0, 15.7e12, 32 * _GB),
    "T4": Gpu(0.0, 8.1e12, 16 * _GB),
}
"""Data sheets of NVIDIA (SXM forms where there are several). V100 and T4 have no bf16 units.

bf16 of GB200, B200, H200, H100, A100 and A10 as in `examples/commons/utils/perf.py` of NVIDIA's recsys-examples. That
table gives an L40 362e12, which is the L40S's dense rate; the data sheet of the L40 says 181e12.
"""


@dataclass(frozen=True, slots=True)
class Mfu:
    """Model FLOPs utilisation: `value` is a fraction, and `of` says what of."""

    value: float
    of: str

    def __str__(self) -> str:
        return f"{self.value:.1%} {self.of}"


def find_gpu(device_name: str) -> Gpu | None:
    """The GPU that a name means, as torch gives it ("NVIDIA H100 80GB HBM3"), or short ("h100"); None if unknown."""
    words = set(re.split(r"[\s\-_/]+", device_name.upper()))
    if "A100" in words and "40GB" in words:
        return GPUS["A100-40GB"]
    return next((gpu for name, gpu in GPUS.items() if name in words), None)


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Published dense peak of a GPU in FLOP/s; None where the name is unknown or the precision has no units."""
    gpu = find_gpu(device_name)
    if gpu is None:
        return None
    return gpu.peak(precision) or None


def memory_of(device_name: str) -> int | None:
    """Memory of a GPU by its name, in bytes; None where the name is unknown."""
    gpu = find_gpu(device_name)
    return None if gpu is None else gpu.memory_bytes


def measure_gemm(
    device: torch.device,
    dtype: torch.dtype,
    threads: int | None = None,
    *,
    size: int = GEMM_SIZE,
    budget_s: float = GEMM_S,
) -> float:
    """FLOP/s of a product of two square matrices of `size` in this process: the best of those that fit `budget_s`.

    `threads` are torch's while it measures (None: as they are). On a busy machine the answer is what was left over.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        out = a @ b  # first call: memory, and the choice of a kernel
        best, end = float("inf"), time.perf_counter() + budget_s
        while best == float("inf") or time.perf_counter() < end:
            _wait(device)
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            _wait(device)
            best = min(best, time.perf_counter() - started)
        return 2.0 * size**3 / best
    finally:
        torch.set_num_threads(before)


def mfu_of(
    flops_per_s: float, devices: int, precision: Precision, *, device_name: str | None, gemm: float | None
) -> Mfu | None:
    """Utilisation of `devices` that do `flops_per_s` together; None where neither a peak nor a `gemm` rate is known.

    `device_name` is that of a GPU, None on CPUs; `gemm` the rate of one device or worker measured in the same run.
    """
    peak = None if device_name is None else peak_flops(device_name, precision)
    if peak is not None:
        return Mfu(flops_per_s / (devices * peak), PUBLISHED)
    return None if not gemm else Mfu(flops_per_s / (devices * gemm), MEASURED)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
