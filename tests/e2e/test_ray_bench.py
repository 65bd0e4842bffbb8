"""`genrec bench` on Ray: measurements are tasks; one that no machine has room for is refused before anything runs."""

from pathlib import Path

import pytest
import yaml
from commands import refused, succeed

from genrec.bench.result import read_result

MATRIX = {
    "base": {
        "name": "tiny",
        "data": {"source": {"name": "synthetic", "num_events": 10_000, "num_items": 200}, "prepared": "prepared/tiny"},
        "sequence": {"max_length": 20},
        "batch": {"tokens_per_step": 256, "micro_batches_per_step": 2, "steps_per_block": 4},
        "model": {"name": "sasrec", "dim": 16, "num_layers": 1, "num_heads": 1},
        "loss": {"name": "full-softmax"},
        "engine": {"name": "torch"},
        "train": {"max_steps": 5},
        "evaluation": {"ks": [1, 10]},
        "cluster": {"threads_per_worker": 1},
    },
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
