"""Peaks by name, the measured rate, and utilisation with its label."""

import pytest
import torch

from genrec.planning.hardware import MEASURED, PUBLISHED, Mfu, measure_gemm, memory_of, mfu_of, peak_flops


@pytest.mark.parametrize(
    ("name", "bf16", "memory_gb"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 80),
        ("NVIDIA H200", 989e12, 141),
        ("NVIDIA A100-SXM4-40GB", 312e12, 40),
        ("NVIDIA A100-SXM4-80GB", 312e12, 80),
        ("NVIDIA GB200", 2.5e15, 186),
        ("NVIDIA B200", 2.25e15, 180),
        ("NVIDIA L40S", 362e12, 48),
        ("NVIDIA L40", 181e12, 48),
        ("NVIDIA L4", 121e12, 24),
        ("NVIDIA A10", 125e12, 24),
        ("h100", 989e12, 80),
    ],
)
def test_names_find_their_gpu(name: str, bf16: float, memory_gb: int) -> None:
    assert peak_flops(name, "bf16") == bf16
    assert memory_of(name) == memory_gb * 10**9


def test_unknown_devices_have_no_peak() -> None:
    assert peak_flops("NVIDIA H1000", "bf16") is None
    assert memory_of("some CPU") is None
    assert peak_flops("Tesla T4", "bf16") is None
    assert peak_flops("Tesla T4", "fp32") == peak_flops("Tesla T4", "tf32") == 8.1e12


def test_tf32_has_half_of_what_bf16_has() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "tf32") == 494.5e12


def test_a_measured_rate_is_a_rate_and_puts_threads_back() -> None:
    before = torch.get_num_threads()
    rate = measure_gemm(torch.device("cpu"), torch.float32, threads=1, size=256, budget_s=0.05)
    assert 1e8 < rate < 1e14
    assert torch.get_num_threads() == before


def test_utilisation_says_what_of() -> None:
    on_gpus = mfu_of(989e12, 2, "bf16", device_name="NVIDIA H100 80GB HBM3", gemm=1e12)
    assert on_gpus == Mfu(0.5, PUBLISHED)
    assert str(on_gpus) == "50.0% of the published peak"
    assert mfu_of(1e11, 2, "fp32", device_name=None, gemm=1e11) == Mfu(0.5, MEASURED)
    assert mfu_of(1e11, 2, "fp32", device_name="unheard-of", gemm=None) is None
