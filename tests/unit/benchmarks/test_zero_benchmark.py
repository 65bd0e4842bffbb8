"""The ZeRO table: theory in closed form beside what is measured, and the real engines hold what theory says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_matrices import BASE, write_matrix

from genrec.bench.matrix import cases_of, load_matrix
from genrec.bench.memory import state_bytes
from genrec.bench.result import Result
from genrec.bench.runner import run_matrix
from genrec.config import config_from_dict
from genrec.data.prepare import ensure_prepared
from genrec.models.build import build_model
from genrec.training.engine import build_engine
from zero import as_markdown, compare


def measured_result(path: Path, medians: dict[str, Any]) -> Result:
    """What `genrec bench` would have written."""
    config = load_matrix(path).model_dump(mode="json")
    return Result("zero", config, [], medians, {}, {}, "abc")


def full(weights: float, optimizer: float, peak: float) -> dict[str, Any]:
    values = {"weights_bytes": weights, "optimizer_bytes": optimizer, "peak_bytes": peak}
    return {"full": {"ok": 1, **{name: {"median": value} for name, value in values.items()}}}


def test_theory_is_a_part_for_each_worker(tmp_path: Path) -> None:
    engine = {"name": "deepspeed", "zero_stage": 0}
    path = write_matrix(
        tmp_path,
        base={
            **BASE,
            "data": {**BASE["data"], "prepared": str(tmp_path / "prepared")},
            "batch": {**BASE["batch"], "micro_batches_per_step": 4},
            "engine": engine,
        },
        axes={"cluster.workers": [1, 4], "engine.zero_stage": [0, 1]},
    )
    cases = cases_of(load_matrix(path), "test")
    ensure_prepared(cases[0].config.data)
    n = sum(weight.numel() for weight in build_model(cases[0].config, 200).parameters())
    peak = 400.0 * 2**20
    result = compare(measured_result(path, {case.name: full(4 * n, 8 * n, peak) for case in cases}))
    assert [(row["workers"], row["stage"]) for row in result.rows] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert [row["weights_theory_bytes"] for row in result.rows] == [4 * n] * 4
    assert [row["optimizer_theory_bytes"] for row in result.rows] == [8 * n, 12 * n, 8 * n, 3 * n]
    assert [row["optimizer_error"] for row in result.rows] == [0, 0.5, 0, -0.625]
    assert all(row["rest_bytes"] == round(peak - 12 * n) for row in result.rows)
    assert result.medians["optimizer"]["within_0.01"] == 2
    assert as_markdown(result).count("12.00 / 12.00") == 2


def test_a_result_without_the_counted_state_is_refused(tmp_path: Path) -> None:
    path = write_matrix(tmp_path, cases={"plain": {}})
    with pytest.raises(SystemExit, match="no optimizer_bytes for plain"):
        compare(measured_result(path, {"plain": {"full": {"ok": 1, "peak_bytes": {"median": 1.0}}}}))


def test_plain_pytorch_keeps_weights_and_two_moments() -> None:
    config = config_from_dict(BASE)
    engine = build_engine(config, build_model(config, 200), workers=1, device=torch.device("cpu"))
    weights = list(engine.model.parameters())
    n = sum(weight.numel() for weight in weights)
    assert state_bytes(engine) == (4 * n, 0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    engine.inner_optimizer.step()
    found = state_bytes(engine)
    assert found.weights == 4 * n
    assert found.optimizer == 8 * n + 4 * len(weights)  # and a number of the step for each


@pytest.mark.slow
def test_two_workers_keep_what_theory_says(tmp_path: Path, cpu_op: None) -> None:
    """Weights large enough to be divided at stage 3: DeepSpeed keeps whole what has less than 100,000 elements."""
    path = write_matrix(
        tmp_path,
        base={
            **BASE,
            "data": {**BASE["data"], "prepared": str(tmp_path / "prepared")},
            "model": {"name": "sasrec", "dim": 512, "num_layers": 1, "num_heads": 1},
            "engine": {"name": "deepspeed", "zero_stage": 0},
            "cluster": {"workers": 2, "threads_per_worker": 1},
        },
        axes={"engine.zero_stage": [0, 1, 3]},
    )
    result, _ = run_matrix(path, launcher="local", output=tmp_path / "zero.json")
    assert [row["status"] for row in result.rows] == ["ok"] * 3, result.rows
    found = compare(result)
    for row in found.rows:
        assert abs(float(row["weights_error"] or 0)) < 0.02, row
        assert abs(float(row["optimizer_error"] or 0)) < 0.02, row
