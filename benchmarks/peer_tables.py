"""From raw readings to medians, ratios and times, and to the tables that `peers.py` prints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from genrec.bench.result import Result, Row, Summary, summarize

PEER = "rectools"
WANTED_RATIOS = {"sasrec-sampled": 15.0, "sasrec-full": 4.0, "hstu-sampled": 4.0}
"""How many times RecTools' events a second genrec sets out to reach."""

METRIC = "ndcg@10"
TEST_LEVEL = 0.039
"""NDCG@10 on Beauty's test events that genrec sets out to reach."""


def readings(rows: Sequence[Row], model: str, side: str, key: str = "events_per_s") -> dict[int, float]:
    """Successful readings of one side by round; rounds without that reading are left out."""
    return {
        int(row["round"] or 0): float(row[key] or 0.0)
        for row in rows
        if row["model"] == model and row["side"] == side and row["status"] == "ok" and key in row
    }


def paired_ratios(rows: Sequence[Row], model: str, side: str, peer: str = PEER) -> list[float]:
    """`side` over `peer`, round by round: both of a round ran next to each other, so a busy minute hits both."""
    ours, theirs = readings(rows, model, side), readings(rows, model, peer)
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]


def throughput_medians(rows: Sequence[Row]) -> dict[str, Any]:
    """For each model: a summary of each side's events a second, and of its ratio to the peer."""
    medians: dict[str, Any] = {}
    for model, side in dict.fromkeys((str(row["model"]), str(row["side"])) for row in rows):
        entry = medians.setdefault(model, {"events_per_s": {}, f"times_{PEER}": {}})
        entry["events_per_s"][side] = as_dict(summarize(readings(rows, model, side).values()))
        if side != PEER:
            entry[f"times_{PEER}"][side] = as_dict(summarize(paired_ratios(rows, model, side)))
    return medians


def as_dict(summary: Summary | None) -> dict[str, float] | None:
    """The summary with its spread, for JSON."""
    return None if summary is None else asdict(summary) | {"spread": summary.spread}


def seconds_to(curve: Sequence[Row], level: float, key: str = f"validation_{METRIC}") -> float | None:
    """Training seconds of the first point of a curve that is at `level` or above; None when none is."""
    times = [float(point["training_s"] or 0.0) for point in curve if float(point[key] or 0.0) >= level]
    return min(times, default=None)


def quality_medians(rows: Sequence[Row]) -> dict[str, Any]:
    """Each side's best point, and its training seconds to the best validation level that every side reaches.

    `test_*` is the test metric at the epoch that validation chooses.
    """
    curves = {side: [row for row in rows if row["side"] == side and row["status"] == "ok"] for side in _sides(rows)}
    key = f"validation_{METRIC}"
    best = {side: max(curve, key=lambda row: float(row[key] or 0.0)) for side, curve in curves.items() if curve}
    medians: dict[str, Any] = {"best": best, "seconds_to": {}}
    if len(best) < 2:
        return medians
    common = min(float(point[key] or 0.0) for point in best.values())
    for level in (common, common * 0.9, common * 0.75):
        medians["seconds_to"][f"{level:.4f}"] = {side: seconds_to(curve, level) for side, curve in curves.items()}
    return medians


def _sides(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["side"]) for row in rows))


def print_throughput(console: Console, result: Result) -> None:
    """Medians with their spread, the ratio to the peer, cores in use, and the readings that did not come to an end."""
    table = Table(title="MovieLens-1M, real events a second of steady training")
    for column in ("model", "side", "events/s", "spread", f"x {PEER}", "wanted", "cores", "memory", "not ok"):
        table.add_column(column, justify="left" if column in ("model", "side", "not ok") else "right")
    for model, entry in result.medians.items():
        for side, summary in entry["events_per_s"].items():
            ratio = entry[f"times_{PEER}"].get(side)
            memory = summarize(readings(result.rows, model, side, "peak_memory_bytes").values())
            cores = summarize(readings(result.rows, model, side, "cores_used").values())
            found = [str(row["status"]) for row in result.rows if (row["model"], row["side"]) == (model, side)]
            table.add_row(
                model,
                side,
                f"{summary['median']:,.0f}" if summary else "-",
                f"{summary['spread']:.0%}" if summary else "-",
                f"{ratio['median']:.1f}" if ratio else "-",
                f"{WANTED_RATIOS[model]:.0f}" if side != PEER and model in WANTED_RATIOS else "",
                f"{cores.median:.1f}" if cores else "-",
                f"{memory.maximum / 2**30:.1f} GiB" if memory else "-",
                ", ".join(status for status in found if status != "ok"),
            )
    console.print(table)


def print_quality(console: Console, result: Result) -> None:
    """Best points and the seconds to common levels."""
    table = Table(title=f"Amazon Beauty, {METRIC}: epoch chosen on validation, seen items filtered")
    for column in ("side", "best validation", "its test", "training s", "epochs"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, point in result.medians["best"].items():
        table.add_row(
            side,
            f"{point[f'validation_{METRIC}']:.4f}",
            "-" if point[f"test_{METRIC}"] is None else f"{point[f'test_{METRIC}']:.4f}",
            f"{point['training_s']:,.0f}",
            f"{point['epoch']:.1f}",
        )
    console.print(table)
    for level, seconds in result.medians["seconds_to"].items():
        times = ", ".join(f"{side} {s:,.0f} s" if s is not None else f"{side} never" for side, s in seconds.items())
        console.print(f"validation {METRIC} {level}: {times}")
    for row in result.rows:
        if row["status"] != "ok":
            console.print(f"{row['side']}: {row['status']}: {row['message']}")
    console.print(f"Wanted on test: {METRIC} {TEST_LEVEL}")
