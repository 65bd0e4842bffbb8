"""Results of benchmarks that look like real ones, made without measuring."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from genrec.bench.result import Result, Row

MACHINE = {
    "processor": "AMD EPYC",
    "cores": 8,
    "memory_bytes": 25_276_063_744,
    "system": "Linux 6.1",
    "python": "3.11.7",
    "load_average_1_min": 1.01,
}
PARTS = {"weights": 60, "gradients": 60, "optimizer": 120, "activations": 90, "logits": 64, "communication": 20}
PHASES = {"data_wait": 0.02, "to_device": 0.01, "forward": 0.31, "backward": 0.45, "communication": 0.1}
MIB = 2**20


def training_rows(repetitions: int = 3, *, faster: float = 1.0, heavier: float = 1.0) -> list[Row]:
    """Rows of `genrec bench`: ZeRO 0 to 3 on 1, 2 and 4 workers; one case is out of memory, one timed out.

    `faster` and `heavier` scale throughput and memory; the noise of a reading depends on its case and repetition alone.
    """
    rows = [
        row
        for stage in range(4)
        for workers in (1, 2, 4)
        for row in _case_rows(stage, workers, repetitions, (faster, heavier))
    ]
    case: Row = {"case": "long", "batch.tokens_per_step": 262_144, "cluster.workers": 1, "workers": 1, "mode": "full"}
    memory = "MemoryError: 12.1 GiB wanted <by one step>"
    rows.append({**case, "repetition": 0, "status": "out-of-memory", "error": memory})
    late: Row = {**case, "case": "slow", "batch.tokens_per_step": 4_096, "repetition": 0}
    return [*rows, {**late, "status": "timed-out", "error": "no result after 600 s"}]


def _case_rows(stage: int, workers: int, repetitions: int, scales: tuple[float, float]) -> Iterator[Row]:
    for repetition in range(repetitions):
        noise = 1 + 0.01 * np.random.default_rng([stage, workers, repetition]).standard_normal()
        rate = scales[0] * noise * 20_000 * workers**0.9 * (1 - 0.04 * stage)
        step_s = 16_384 / rate
        shares = {name: size * MIB / (workers if _sharded(name, stage) else 1) for name, size in PARTS.items()}
        peak = scales[1] * sum(shares.values()) * (1.06 + 0.002 * repetition)
        measured: dict[str, Any] = {f"{name}_s": part * step_s for name, part in PHASES.items()}
        yield {
            "case": f"zero{stage}-{workers}w",
            "engine.zero_stage": stage,
            "batch.tokens_per_step": 16_384,
            "cluster.workers": workers,
            "repetition": repetition,
            "status": "ok",
            "error": None,
            "workers": workers,
            "mode": "full",
            "events_per_s": rate,
            "tokens_per_s": rate * 1.02,
            "step_s": step_s,
            "baseline_bytes": 300 * MIB,
            "peak_bytes": int(peak),
            "predicted_bytes": int(sum(shares.values())),
            **{f"predicted_{name}_bytes": int(size) for name, size in shares.items()},
            "predicted_step_s": 0.9 * step_s,
            "mfu": 0.21 * noise,
            "mfu_of": "measured matmul rate",
            **measured,
            "optimizer_s": 0.07 * step_s,
            "hooks_s": 0.01 * step_s,
            "other_s": 0.03 * step_s,
        }


def _sharded(name: str, stage: int) -> bool:
    return stage >= {"optimizer": 1, "gradients": 2, "weights": 3}.get(name, 9)


def scaling_rows(rates: dict[int, tuple[float, ...]]) -> list[Row]:
    """Cases with the same work for each worker, one reading a round."""
    return [
        {"case": f"{workers} workers", "cluster.workers": workers, "batch.tokens_per_step": 4_096 * workers}
        | {"batch.micro_batches_per_step": workers, "workers": workers, "mode": "full", "status": "ok"}
        | {"repetition": turn, "events_per_s": rate}
        for workers, of_rounds in rates.items()
        for turn, rate in enumerate(of_rounds)
    ]


def other_rows() -> list[Row]:
    """Rows of a script under benchmarks/: another shape."""
    return [
        {"dim": dim, "loss": loss, "round": turn, "events_per_s": 1e4 * dim / 64 + 50.0 * turn, "note": None}
        for dim in (64, 128)
        for loss in ("full", "<sampled>")
        for turn in range(5)
    ]


def result_of(rows: list[Row], name: str = "training", **changes: Any) -> Result:
    """A result with these rows; `changes` replace its fields."""
    values: dict[str, Any] = {
        "name": name,
        "config": {"base": "configs/bench.yaml", "repetitions": 3, "command": "genrec bench configs/bench/zero.yaml"},
        "rows": rows,
        "medians": {},
        "versions": {"torch": "2.13.0+cpu", "ray": "2.60.0"},
        "machine": MACHINE,
        "commit": "4c5f88e534a3",
        "finished": "2026-11-25T21:31:25+00:00",
    }
    return Result(**{**values, **changes})


def write_bench(path: Path, rows: list[Row], name: str = "training", **changes: Any) -> Path:
    """The file of such a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result_of(rows, name, **changes))))
    return path
