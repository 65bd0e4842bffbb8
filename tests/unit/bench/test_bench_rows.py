"""What a row says of workers that failed, and what the medians make of rows."""

import signal
from typing import Any

import pytest

from genrec.bench.processes import Ended, Task, judge
from genrec.bench.result import Row
from genrec.bench.rows import medians_of

TASK = Task("key", {"case": "a"}, {}, {}, workers=2, timeout_s=7)
OK = Ended(0, "", {"status": "ok"})


def told(status: str, error: str, time_s: float) -> Ended:
    return Ended(1, "", {"status": status, "error": error, "time_s": time_s})


@pytest.mark.parametrize(
    ("ended", "killed_for_memory", "status", "error"),
    [
        ([OK, OK], False, "ok", None),
        ([told("failed", "late", 2), told("failed", "first", 1)], False, "failed", "first"),
        ([told("failed", "peer is gone", 1), told("out-of-memory", "x", 2)], False, "out-of-memory", "x"),
        ([OK, Ended(-signal.SIGKILL, "", None)], False, "failed", "ended by SIGKILL"),
        ([OK, Ended(-signal.SIGKILL, "", None)], True, "out-of-memory", "killed by the system"),
        ([Ended(-signal.SIGABRT, "what(): std::bad_alloc", None), OK], False, "out-of-memory", "bad_alloc"),
        ([Ended(3, "no such module", None), OK], False, "failed", "ended with exit code 3: no such module"),
    ],
)
def test_status(ended: list[Ended], killed_for_memory: bool, status: str, error: str | None) -> None:
    found_status, found_error = judge(ended, False, TASK, killed_for_memory=killed_for_memory)
    assert found_status == status
    assert error is None if found_error is None else error is not None and error in found_error


def test_a_time_out_counts_before_all_else() -> None:
    assert judge([told("failed", "x", 1), OK], True, TASK, killed_for_memory=True) == (
        "timed-out",
        "not done after 7 s",
    )


def row(mode: str, events: float, status: str = "ok", **seconds: float) -> Row:
    parts = ("data_wait", "to_device", "forward", "backward", "communication", "optimizer", "hooks", "other")
    full: Row = {f"{name}_s": seconds.get(name, 0.0) for name in parts} if mode != "data-only" else {}
    return {"case": "a", "mode": mode, "status": status, "events_per_s": events, **full}


def test_medians_are_of_what_was_ok() -> None:
    medians = medians_of([row("full", 10), row("full", 30), row("full", 20), row("full", 99, status="failed")])
    found = medians["a"]["full"]
    assert (found["ok"], found["of"]) == (3, 4)
    assert found["events_per_s"] == {"median": 20, "minimum": 10, "maximum": 30, "count": 3}


@pytest.mark.parametrize(
    ("rows", "bottleneck"),
    [
        ([row("full", 9, forward=0.2, backward=0.3, communication=0.4)], "compute"),
        ([row("full", 9, forward=0.2, communication=0.4)], "communication"),
        ([row("full", 9, forward=0.2, data_wait=0.4)], "data"),
        ([row("full", 9, forward=0.2), row("data-only", 8), row("compute-only", 9)], "data"),
        ([row("full", 9, forward=0.2), row("data-only", 9), row("compute-only", 8)], "compute"),
        ([row("data-only", 9)], None),
    ],
)
def test_bottleneck(rows: list[Row], bottleneck: Any) -> None:
    assert medians_of(rows)["a"]["bottleneck"] == bottleneck
