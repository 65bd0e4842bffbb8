"""A small chaos run: a real cluster of three nodes, three faults, and the judge's verdict."""

import subprocess
import sys
from pathlib import Path

import pytest

from genrec.bench.result import read_result

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"
KINDS = ("worker killed", "command killed", "shard cut")


@pytest.mark.slow
@pytest.mark.timeout(1_300)
def test_three_faults_cost_no_window_and_no_metric(tmp_path: Path) -> None:
    output = tmp_path / "chaos.json"
    command = [sys.executable, str(SCRIPT), "--kinds", ",".join(KINDS), "--faults", "3", "--steps", "240"]
    process = subprocess.Popen([*command, "--json", str(output)], stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=1_200)
    finally:
        process.terminate()  # it takes the cluster away
        process.wait(60)
    assert process.returncode == 0, said[-3000:]
    result = read_result(output)
    assert sorted(str(row["kind"]) for row in result.rows) == sorted(KINDS)
    assert result.medians["survived"] == 3
    assert result.medians["problems"] == []
    assert result.medians["loss"]["largest_relative_difference"] < 1e-5
