"""The proof of `make cluster-proof`, with fewer steps: a run that is broken, a sweep and a benchmark, as jobs."""

import subprocess
import sys
from pathlib import Path

import pytest

from genrec.bench.result import read_result

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cluster_proof.py"


@pytest.mark.slow
@pytest.mark.timeout(1_900)
def test_a_submitted_run_that_loses_a_node_equals_the_local_run(tmp_path: Path) -> None:
    output = tmp_path / "proof.json"
    command = [sys.executable, str(SCRIPT), "--steps", "40", "--json", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=1_800)
    finally:
        process.terminate()  # it takes the cluster away
        process.wait(60)
    assert process.returncode == 0, said[-3000:]
    found = read_result(output).medians
    assert found["loss_largest_relative_difference"] < 1e-5
    if found["namespaces"] is True:  # else the script says why it left the sweep out
        assert found["sweep_loss_largest_relative_difference"] < 1e-5
    assert min(found["benchmark_events_per_s"]) > 0
    assert 0 < found["resumed_at_step"] <= found["killed_at_step"]
