"""What a finished run says about its hardware, for the plans that come after it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, DataError
from genrec.planning.machine import Machine
from genrec.run_dir import open_run, read_metrics, write_atomically

CALIBRATION_FILE = "calibration.json"
SCHEMA_VERSION = 2

DEFAULT_GPU_EFFICIENCY = 0.3
"""MFU of a tuned recommender on H100 (NVIDIA's HSTU: 31.4% jagged), used where nothing was measured."""

DEFAULT_CPU_EFFICIENCY = 0.8
"""Of the GEMM rate, for the matrix products alone; element-wise parts are counted beside them."""

CPU_PASSES = 10.0
"""How often what a step keeps goes through memory on a CPU: forward, backward, and the gradients in between.

Fitted to the SASRec cases without ZeRO of benchmarks/matrices/memory.yaml, on one machine. On a GPU the efficiency
above has the element-wise parts in it.
"""

CPU_OVERHEAD_S, GPU_OVERHEAD_S = 0.006, 0.004


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rates of one worker, measured or assumed.

    flops_per_s     what the forward and backward pass reach; on a CPU their matrix products alone
    kept_bytes_per_s  of what is kept for the backward pass, how much the element-wise parts get through; None on a GPU
    overhead_s      of a micro-batch, whatever is in it
    source          where the numbers come from
    """

    flops_per_s: float
    kept_bytes_per_s: float | None
    overhead_s: float
    source: str
    schema_version: int = SCHEMA_VERSION


def assumed(machine: Machine) -> Calibration:
    """The calibration of a machine where nothing was measured."""
    on_gpu = machine.on_gpu
    efficiency = DEFAULT_GPU_EFFICIENCY if on_gpu else DEFAULT_CPU_EFFICIENCY
    label = "of the published peak" if on_gpu else "of a matrix product's rate"
    return Calibration(
        machine.peak_flops * efficiency,
        None if on_gpu else machine.bytes_per_s / CPU_PASSES,
        GPU_OVERHEAD_S if on_gpu else CPU_OVERHEAD_S,
        f"assumed: {efficiency:.0%} {label}; calibrate with --calibrate RUN",
    )


def measured_step_s(run: str | Path) -> tuple[ExperimentConfig, float, int]:
    """A run's config, its seconds for an event (median over its log lines), and its workers.

    Raises DataError when it has too few lines.
    """
    directory, config = open_run(run)
    lines = read_metrics(directory.metrics_path)
    rates = [float(line["events_per_s"]) for line in lines if line.get("kind") == "train" and line.get("events_per_s")]
    rates = rates[1:] if len(rates) > 2 else rates  # the first line has the start in it
    if not rates:
        raise DataError(f"{run} has no lines of training in metrics.jsonl; train it for some steps first.")
    workers = next((int(line["workers"]) for line in reversed(lines) if line.get("kind") == "start"), 1)
    return config, 1.0 / median(rates), workers


def fitted(base: Calibration, *, step_s: float, predicted_s: float, compute_s: float, source: str) -> Calibration:
    """`base` with its rates and overhead scaled so that a step takes `step_s` and not `predicted_s`.

    What is not compute stays as predicted; where a step took less than that, everything is scaled alike.
    """
    others = predicted_s - compute_s
    left = step_s - others
    scale = left / compute_s if left > 0.1 * step_s else step_s / predicted_s
    kept = None if base.kept_bytes_per_s is None else base.kept_bytes_per_s / scale
    return Calibration(base.flops_per_s / scale, kept, base.overhead_s * scale, source)


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Writes a calibration for `--calibration FILE`."""
    write_atomically(Path(path), json.dumps(asdict(calibration), indent=1) + "\n")


def read_calibration(path: str | Path) -> Calibration:
    """What `save_calibration` wrote; raises ConfigError for anything else."""
    try:
        values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        found = Calibration(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a calibration ({error}); make one with `genrec plan CONFIG --calibrate RUN`."
        ) from error
    if found.schema_version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {found.schema_version}, this reads {SCHEMA_VERSION}; make it again with "
            "`genrec plan CONFIG --calibrate RUN`."
        )
    return found
