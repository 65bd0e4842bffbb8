"""What the utilisation of a step in bf16 is a part of, where the processor is slow in bf16, and where it is fast."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genrec.bench import measure
from genrec.config import load_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("precision", "bf16_rate", "expected"), [("bf16", 1.0, 5.0), ("bf16", 9.0, 9.0), ("fp32", 9.0, 5.0)]
)
def test_the_faster_product_counts(
    monkeypatch: pytest.MonkeyPatch, precision: str, bf16_rate: float, expected: float
) -> None:
    def rate(device: torch.device, dtype: torch.dtype, **limits: Any) -> float:
        return bf16_rate if dtype == torch.bfloat16 else 5.0

    monkeypatch.setattr(measure, "measure_gemm", rate)
    config = load_config(QUICKSTART, ["engine={name: torch}", f"engine.precision={precision}"])
    assert measure.gemm_flops(config, torch.device("cpu")) == expected


def test_products_are_timed_as_exact_as_the_step_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def rate(*_: Any, **__: Any) -> float:
        seen.append(torch.get_float32_matmul_precision())
        return 1.0

    monkeypatch.setattr(measure, "measure_gemm", rate)
    measure.gemm_flops(load_config(QUICKSTART, ["engine.matmul_precision=medium"]), torch.device("cpu"))
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"
