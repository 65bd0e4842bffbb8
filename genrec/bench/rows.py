"""From the readings of a measurement's workers to the columns of its row, and from rows to medians."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from genrec.bench.result import Row, summarize
from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.planning.fit import is_known

COMPUTE = ("to_device_s", "forward_s", "backward_s", "optimizer_s")
SUMMARIZED = (
    "events_per_s",
    "tokens_per_s",
    "step_s",
    "peak_bytes",
    "weights_bytes",
    "optimizer_bytes",
    "mfu",
    "data_wait_s",
    "to_device_s",
    "forward_s",
    "backward_s",
    "communication_s",
    "optimizer_s",
    "hooks_s",
    "other_s",
)


def row_of(config: ExperimentConfig, readings: Sequence[dict[str, Any]]) -> Row:
    """Rates over all workers, by the slowest; memory of the worst; the parts of a step are means of the workers."""
    seconds = max(reading["seconds"] for reading in readings)
    row: Row = {
        "events_per_s": round(readings[0]["num_targets"] / seconds, 1),
        "tokens_per_s": round(sum(reading["num_tokens"] for reading in readings) / seconds, 1),
        "cores_used": round(sum(reading["cpu_seconds"] for reading in readings) / seconds, 2),
    }
    names = readings[0]["sections"]
    row |= {name: round(mean(reading["sections"][name] for reading in readings), 6) for name in names}
    if readings[0]["peak_bytes"] is None:
        return row
    parts = [name for name in names if name != "step_s"]
    row["step_s"] = round(sum(float(row[name] or 0) for name in parts), 6)
    worst = max(readings, key=lambda reading: int(reading["peak_bytes"]))
    names = ["baseline_bytes", "peak_bytes", "weights_bytes", "optimizer_bytes"]
    row |= {name: worst[name] for name in names}
    return row | _predicted(config) | _utilisation(config, readings) if is_known(config) else row


def _predicted(config: ExperimentConfig) -> Row:
    """What `genrec plan` says of a worker's memory, in all and by part."""
    from genrec.planning.planner import predict_here

    option = predict_here(config)
    if option is None:
        return {}
    parts = option.memory.parts()
    parts["runtime"] += parts.pop("data") + parts.pop("allocator")
    by_part = {f"predicted_{name}_bytes": round(value) for name, value in parts.items()}
    return {"predicted_bytes": round(option.memory.total), **by_part}


def _utilisation(config: ExperimentConfig, readings: Sequence[dict[str, Any]]) -> Row:
    from genrec.planning.hardware import mfu_of
    from genrec.planning.machine import precision_of

    manifest = load_manifest(config.data.prepared)
    steps = zip(*(reading["lengths"] for reading in readings), strict=True)
    lengths = [[length for share in step for length in share] for step in steps]
    flops = mean(_flops(config, manifest, of_step) for of_step in lengths)
    seconds = max(reading["seconds"] for reading in readings) / len(lengths)
    rates = [reading["gemm_flops"] for reading in readings]
    gemm = None if None in rates else mean(rates)
    precision, name = precision_of(config), readings[0]["device_name"]
    mfu = mfu_of(flops / seconds, len(readings), precision, device_name=name, gemm=gemm)
    row: Row = {"flops_per_step": round(flops)}
    return row | ({} if mfu is None else {"mfu": round(mfu.value, 5), "mfu_of": mfu.of})


def _flops(config: ExperimentConfig, manifest: Manifest, lengths: list[int]) -> float:
    from genrec.planning.flops import step_flops
    from genrec.planning.workload import Catalogue

    vectors = manifest.item_vectors
    return step_flops(
        config,
        manifest.num_train_items or manifest.num_items,
        lengths,
        num_actions=len(manifest.actions),
        vector_dim=0 if vectors is None else vectors.dim,
        code_sizes=Catalogue.of(manifest, config).code_sizes,
    ).total


def medians_of(rows: Sequence[Row]) -> dict[str, Any]:
    """By case and mode: median and spread of what was measured, how many were ok, and where the bottleneck is."""
    medians: dict[str, Any] = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        of_modes: dict[str, Any] = {}
        for mode in dict.fromkeys(row["mode"] for row in mine):
            found = [row for row in mine if row["mode"] == mode]
            readings = [row for row in found if row["status"] == "ok"]
            of_modes[str(mode)] = {"ok": len(readings), "of": len(found)} | {
                name: asdict(summary)
                for name in SUMMARIZED
                if (summary := summarize([float(row[name]) for row in readings if row.get(name) is not None]))  # type: ignore[arg-type]
            }
        medians[str(case)] = {**of_modes, "bottleneck": _bottleneck(of_modes)}
    return medians


def _bottleneck(of_modes: dict[str, Any]) -> str | None:
    """What holds a step up: data, compute or communication; None where nothing tells.

    Data, where reading alone gives fewer events a second than computing alone; else the largest part of a step.
    """

    def rate(mode: str) -> float | None:
        value: float | None = of_modes.get(mode, {}).get("events_per_s", {}).get("median")
        return value

    reading, computing = rate("data-only"), rate("compute-only")
    if reading is not None and computing is not None and reading < computing:
        return "data"
    parts = of_modes.get("full") or of_modes.get("compute-only") or {}
    if "forward_s" not in parts:
        return None
    seconds = {
        "data": parts["data_wait_s"]["median"],
        "communication": parts["communication_s"]["median"],
        "compute": sum(parts[name]["median"] for name in COMPUTE),
    }
    return max(seconds, key=lambda name: seconds[name])
