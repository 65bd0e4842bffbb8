"""`genrec bench` on Ray: measurements are tasks; one that no machine has room for is refused before anything runs."""

from pathlib import Path

import pytest
import yaml
from bench_matrices import BASE
from commands import refused, succeed

from genrec.bench.result import read_result

MATRIX = {
    "base": BASE,
    "axes": {"cluster.workers": [1, 2]},
    "steps": 3,
}


@pytest.mark.slow
def test_cases_are_ray_tasks(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(MATRIX))
    shown = succeed(tmp_path, "bench", "tiny.yaml")
    rows = read_result(tmp_path / "benchmarks" / "out" / "tiny.json").rows
    assert [(row["case"], row["status"], row["workers"]) for row in rows] == [
        ("workers=1", "ok", 1),
        ("workers=2", "ok", 2),
    ]
    assert "Result: benchmarks/out/tiny.json" in shown

    wide = {**MATRIX, "axes": {"cluster.threads_per_worker": [4_000]}}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide))
    sentence = refused(tmp_path, "bench", "wide.yaml")
    assert "Case threads_per_worker=4000 needs 4000 CPUs and 0 GPUs on one machine" in sentence
