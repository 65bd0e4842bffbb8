"""Measurements in real processes: out of memory, out of time and failed are rows, and a stopped matrix goes on."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_matrices import write_matrix

from genrec.bench.matrix import cases_of, load_matrix, measurements_of
from genrec.bench.processes import Task, run_task, task_of
from genrec.bench.result import read_result
from genrec.bench.runner import run_matrix
from genrec.data.prepare import ensure_prepared
from genrec.errors import ConfigError

PARTS = ("data_wait", "to_device", "forward", "backward", "communication", "optimizer", "hooks", "other")
BENCH = "import sys; from genrec.cli import main; sys.argv[0] = 'genrec'; main()"


def only_task(folder: Path, **values: Any) -> Task:
    """The task of a matrix with one case, with its data prepared."""
    path = write_matrix(folder, **values)
    matrix = load_matrix(path)
    (measurement,) = measurements_of(matrix, cases_of(matrix, str(path)))
    ensure_prepared(measurement.case.config.data)
    return task_of(measurement, matrix)


def test_a_case_beyond_its_memory_is_a_row(tmp_path: Path) -> None:
    size = {"model.dim": 256, "model.num_layers": 64}  # 25 million weights
    row = run_task(only_task(tmp_path, memory_limit_bytes=64 * 2**20, cases={"large": size}))
    assert (row["case"], row["status"]) == ("large", "out-of-memory")
    assert "allocate" in str(row["error"]) or "Memory" in str(row["error"])
    assert "events_per_s" not in row


def test_a_case_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    row = run_task(only_task(tmp_path, timeout_s=0.3))
    assert (row["status"], row["error"]) == ("timed-out", "not done after 0.3 s")
    assert time.monotonic() - began < 60


def test_a_case_that_fails_is_a_row_with_its_sentence(tmp_path: Path) -> None:
    task = only_task(tmp_path)
    shutil.rmtree(tmp_path / "prepared")
    row = run_task(task)
    assert row["status"] == "failed"
    assert "prepared" in str(row["error"]) and "\n" not in str(row["error"])


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not list(path.glob("workers=1*.json")):
        assert process.poll() is None, "the command ended before its first case was done"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_matrix_goes_on(tmp_path: Path) -> None:
    """The first case is measured, the command killed; the same command measures the second, with two workers, only."""
    path = write_matrix(tmp_path, axes={"cluster.workers": [1, 2]})
    output = tmp_path / "tiny.json"
    arguments = ["bench", str(path), "--launcher", "local", "--output", str(output)]
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-c", BENCH, *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(tmp_path / "tiny.json.cases", process)
        finally:
            process.kill()  # its workers see it and end
            process.wait(60)
    (first,) = (tmp_path / "tiny.json.cases").glob("workers=1*.json")
    assert not output.exists()
    kept = json.loads(first.read_text()) | {"events_per_s": 12_345}
    first.write_text(json.dumps(kept))

    seen: list[tuple[int, int]] = []
    result, _ = run_matrix(
        path, launcher="local", output=output, watch=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert read_result(output) == result
    one, two = result.rows
    assert one["events_per_s"] == 12_345
    assert (two["status"], two["error"]) == ("ok", None)
    assert (two["workers"], two["cluster.workers"], two["mode"], two["repetition"]) == (2, 2, "full", 0)
    assert sum(float(two[f"{part}_s"] or 0) for part in PARTS) == pytest.approx(two["step_s"], abs=1e-5)
    for name in ("forward_s", "backward_s", "communication_s", "optimizer_s", "events_per_s", "flops_per_step", "mfu"):
        assert float(two[name] or 0) > 0, name
    assert two["mfu_of"] == "of the GEMM rate measured in the same run"
    assert 0 <= int(two["peak_bytes"] or 0) < 200 * 2**20 < int(two["baseline_bytes"] or 0)
    assert float(two["tokens_per_s"] or 0) == pytest.approx(float(two["events_per_s"] or 0), rel=0.2)

    write_matrix(tmp_path, axes={"cluster.workers": [1, 2]}, steps=4)
    with pytest.raises(ConfigError, match=r"another matrix \(steps: 3 -> 4\); start over with --fresh"):
        run_matrix(path, launcher="local", output=output)


def test_a_range_of_workers_is_refused(tmp_path: Path) -> None:
    path = write_matrix(tmp_path, cases={"any": {"engine.precision": "bf16"}})
    text = path.read_text().replace("threads_per_worker: 1", "threads_per_worker: 1\n    workers: [1, 2]")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"case any: cluster\.workers is a range"):
        run_matrix(path, launcher="local", output=tmp_path / "out.json")


def test_a_case_that_does_not_fit_its_data_is_named(tmp_path: Path) -> None:
    path = write_matrix(tmp_path, cases={"far": {"seed": 2}, "typed": {"heads.dwell.weight": 1.0}})
    with pytest.raises(ConfigError, match=r"case typed.*heads\.dwell"):
        run_matrix(path, launcher="local", output=tmp_path / "out.json")
