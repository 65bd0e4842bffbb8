"""The cost of checkpoints: how long a run is, what a step's time is, and that the three sides run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoint_cost
from checkpoint_cost import CHECKPOINTS, medians_of, share_within, span_of, step_seconds
from genrec.bench.result import Row, read_result

CONFIG = """\
name: tiny
data: {source: {name: synthetic, num_events: 10000, num_items: 100, num_users: 500}, prepared: SET}
sequence: {max_length: 8}
batch: {tokens_per_step: 128, micro_batches_per_step: 1}
model: {name: sasrec, dim: 8, num_layers: 1, num_heads: 1}
loss: {name: full-softmax}
engine: {name: torch}
train: {max_steps: 10, log_every_steps: 4}
evaluation: {ks: [1, 10]}
"""


@pytest.mark.parametrize(("step_s", "interval_s", "logged"), [(0.25, 30, 16), (2.0, 30, 16), (0.01, 1, 10)])
def test_a_run_has_its_checkpoints_apart_and_room_after_the_last(step_s: float, interval_s: float, logged: int) -> None:
    steps, every = span_of(step_s, interval_s, logged)
    assert every % logged == steps % logged == 0
    assert abs(every * step_s - interval_s) <= logged * step_s
    assert steps > CHECKPOINTS * every
    assert len(range(every, steps, every)) >= CHECKPOINTS


def test_a_step_is_wall_time_between_two_lines() -> None:
    lines = [{"step": 10, "elapsed_s": 5.0}, {"step": 20, "elapsed_s": 6.0}, {"step": 30, "elapsed_s": 45.0}]
    assert step_seconds(lines) == 2.0


def test_a_save_costs_what_its_steps_take_longer_than_the_later_ones() -> None:
    seconds = [1.0] * 20
    seconds[4] = seconds[14] = 3.0  # the steps after the saves of step 4 and 14, in a run that saves every 10
    lines = [{"step": step, "elapsed_s": sum(seconds[:step])} for step in range(1, 21)]
    assert share_within(lines, [4], 10) == pytest.approx(0.2)
    assert share_within(lines, [4, 14], 10) == pytest.approx(0.2)  # the second interval is not whole
    assert share_within(lines, [14], 10) is None


def test_ratios_are_taken_within_a_round() -> None:
    times = {
        (0, "none"): 1.0,
        (0, "async"): 1.1,
        (0, "sync"): 1.5,
        (1, "none"): 2.0,
        (1, "async"): 2.0,
        (1, "sync"): 2.0,
    }
    good = {"status": "ok", "checkpoint_bytes": 7}
    rows: list[Row] = [{"round": n, "side": m, "step_s": s, **good} for (n, m), s in times.items()]
    rows.append({"round": 2, "side": "none", "step_s": 9.0, **good})
    rows.append({"round": 2, "side": "async", "status": "out-of-memory", "error": "killed"})
    found = medians_of(rows)
    assert found["async_ratio"]["median"] == pytest.approx(1.05)
    assert found["sync_ratio"]["maximum"] == pytest.approx(1.5)
    assert found["checkpoint_bytes"] == 7


@pytest.mark.slow
def test_the_three_sides_run(tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.yaml", tmp_path / "out.json"
    file.write_text(CONFIG.replace("SET", str(tmp_path / "set")))
    command = [sys.executable, checkpoint_cost.__file__, str(file), "--quick", "--rounds", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_result(out)
    assert [(row["side"], row["num_checkpoints"]) for row in result.rows] == [("none", 0), ("async", 2), ("sync", 2)]
    assert [row["share_within_run"] is None for row in result.rows] == [True, False, False]
    assert all(row["step_s"] > 0 and row["checkpoint_bytes"] > 10_000 for row in result.rows)
    assert json.loads(out.read_text())["medians"]["async_ratio"]["count"] == 1
