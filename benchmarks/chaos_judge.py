"""Judges a run that has been through faults, from what it has written down: metrics, windows, evaluation.

Nothing here asks the harness what it believes: where the run went on, what it lost, and what it was trained on are read
from the run directory, and what it should have been trained on is planned anew.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from chaos_run import Injected

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Restart:
    """The run went on from an earlier step than it had reached, or was started again there."""

    time_s: float
    """When the first step after it was done."""
    done: int
    """Steps that had been done before."""
    resumed_at: int
    """Steps that were done in the checkpoint."""


@dataclass(frozen=True, slots=True)
class FaultResult:
    """What one fault has cost."""

    fault: Injected
    restarts: int
    steps_lost: int
    """Steps done when the run broke less those that it went on from: they were trained again."""
    allowed: int
    recover_s: float | None
    """Seconds from the fault to the first step after its last restart; None when nothing had to be restarted."""
    survived: bool


def find_restarts(records: Iterable[Record]) -> list[Restart]:
    """The restarts of a run whose metrics.jsonl has a `train` line for every step, in the order they happened.

    A `start` line follows the first `train` line of its workers. It tells a restart that lost nothing, where the steps
    go straight on.
    """
    found: list[Restart] = []
    done = 0
    for record in records:
        if record["kind"] == "train":
            if record["step"] <= done:
                found.append(Restart(record["time_s"], done, record["step"] - 1))
            done = record["step"]
        elif record["kind"] == "start" and record["step"] > 0:
            seen = found and (found[-1].resumed_at, record["step"] + 1) == (record["step"], done)
            if not seen:
                found.append(Restart(record["time_s"], record["step"], record["step"]))
    return found


def judge_faults(faults: Sequence[Injected], records: Sequence[Record], interval: int) -> list[FaultResult]:
    """The cost of each fault; a restart belongs to the last fault before it.

    Allowed are the fault's intervals, and the steps that were trained while the last checkpoint was being written.
    """
    restarts = find_restarts(records)
    ends = [fault.time_s for fault in faults[1:]] + [math.inf]
    results = []
    for fault, end in zip(faults, ends, strict=True):
        mine = [restart for restart in restarts if fault.time_s <= restart.time_s < end]
        in_flight = max(0, fault.at_step - fault.checkpoint_step - interval)
        progress = any(
            record["kind"] == "train" and fault.time_s < record["time_s"] < end and record["step"] > fault.at_step
            for record in records
        )
        results.append(
            FaultResult(
                fault,
                restarts=len(mine),
                steps_lost=max((restart.done - restart.resumed_at for restart in mine), default=0),
                allowed=fault.intervals * interval + in_flight,
                recover_s=round(mine[-1].time_s - fault.time_s, 1) if mine else None,
                survived=progress and not fault.stalled,
            )
        )
    return results


def check_windows(trained: Iterable[Record], planned: Iterable[Record]) -> list[str]:
    """What is wrong with the windows that count, in words; nothing when they are the plan's, each once an epoch.

    A record is one micro-batch: step, part, epoch, users and starts.
    """
    found = {(line["step"], line["part"]): _windows(line) for line in trained}
    wanted = {(line["step"], line["part"]): _windows(line) for line in planned}
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} of {len(wanted)} micro-batches were never trained, the first {missing[0]}")
    if extra := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(extra)} micro-batches were trained that are not planned, the first {extra[0]}")
    if other := sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key]):
        problems.append(f"{len(other)} micro-batches had other windows than planned, the first {other[0]}")
    counts = Counter(window for windows in found.values() for window in windows)
    if twice := sorted(window for window, count in counts.items() if count > 1):
        problems.append(f"{len(twice)} windows count twice in an epoch, the first (epoch, user, start) {twice[0]}")
    return problems


def check_steps(records: Iterable[Record], end_step: int) -> list[str]:
    """What is wrong with the steps: every one from 1 to the planned end must have a `train` line."""
    steps = {record["step"] for record in records if record["kind"] == "train"}
    problems = []
    if missing := sorted(set(range(1, end_step + 1)) - steps):
        problems.append(f"{len(missing)} of {end_step} steps have no line in metrics.jsonl, the first {missing[0]}")
    if steps and max(steps) > end_step:
        problems.append(f"step {max(steps)} is beyond the planned end, {end_step}")
    return problems


def losses(records: Iterable[Record]) -> dict[int, float]:
    """Loss by step; of a step that was trained again, the last."""
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def largest_difference(calm: dict[int, float], chaos: dict[int, float]) -> tuple[float, int]:
    """The largest relative difference of two loss curves, and its step; infinite where a step is missing."""
    if calm.keys() != chaos.keys() or not calm:
        return math.inf, min(calm.keys() ^ chaos.keys(), default=0)
    return max((abs(chaos[step] - loss) / abs(loss), step) for step, loss in calm.items())


def compare_metric(calm: Record, chaos: Record, metric: str) -> dict[str, float | bool]:
    """A metric of two `test` entries of evaluation.json, and whether they are within one standard error."""
    error = max(calm["standard_errors"][metric], chaos["standard_errors"][metric])
    difference = chaos["metrics"][metric] - calm["metrics"][metric]
    return {
        "calm": calm["metrics"][metric],
        "chaos": chaos["metrics"][metric],
        "standard_error": error,
        "within": abs(difference) <= error,
    }


def summary_of(results: Sequence[FaultResult]) -> dict[str, int | float | None]:
    """The figures over all faults."""
    recoveries = [result.recover_s for result in results if result.recover_s is not None]
    lost = [result.steps_lost for result in results]
    return {
        "faults": len(results),
        "survived": sum(result.survived for result in results),
        "restarts": sum(result.restarts for result in results),
        "commands_run_again": sum(len(result.fault.exits) for result in results),
        "steps_lost_max": max(lost, default=0),
        "steps_lost_median": median(lost) if lost else None,
        "beyond_allowed": sum(result.steps_lost > result.allowed for result in results),
        "recover_median_s": median(recoveries) if recoveries else None,
        "recover_max_s": max(recoveries, default=None),
    }


def _windows(line: Record) -> list[tuple[int, int, int]]:
    """(epoch, user, first event) of a micro-batch's windows."""
    return [(line["epoch"], user, start) for user, start in zip(line["users"], line["starts"], strict=True)]
