"""The table of predictions: one case calibrates, the others are predicted, and the report reads it as training."""

from pathlib import Path
from typing import Any

import pytest
from bench_matrices import BASE, write_matrix

from genrec.bench.matrix import cases_of, load_matrix
from genrec.bench.result import Result
from genrec.data.prepare import ensure_prepared
from genrec.reporting.bench_cases import is_training, training_cases
from genrec.reporting.bench_summary import training_summary
from genrec.reporting.bench_tables import foreseen_table
from predictions import as_markdown, compare


def measured(folder: Path, **values: Any) -> Result:
    """What `genrec bench` would have written: 300 MiB and half a second for every case."""
    data = {**BASE["data"], "prepared": str(folder / "prepared")}
    path = write_matrix(folder, base={**BASE, "data": data, "engine": {"name": "deepspeed"}}, **values)
    cases = cases_of(load_matrix(path), "test")
    ensure_prepared(cases[0].config.data)
    full = {"ok": 1, "peak_bytes": {"median": 300.0 * 2**20}, "step_s": {"median": 0.5}}
    config = load_matrix(path).model_dump(mode="json")
    return Result("tiny", config, [], {case.name: {"full": full} for case in cases}, {}, {}, "abc")


def test_a_matrix_of_stages_is_a_table_with_a_column_for_each(tmp_path: Path) -> None:
    result = compare(measured(tmp_path, axes={"model.dim": [16, 32], "engine.zero_stage": [0, 2]}), None)
    assert [row["case"] for row in result.rows if "predicted_step_s" not in row] == ["dim=16 zero_stage=0"]
    assert result.medians["memory_error"]["cases"] == 4
    assert result.medians["step_error"]["cases"] == 3
    lines = as_markdown(result).splitlines()
    assert lines[2:4] == ["| dim | ZeRO-0 | ZeRO-2 |", "| --: | --: | --: |"]
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| 16", "| 32"]
    first = result.rows[0]
    error = float(first["predicted_bytes"] or 0) / (300 * 2**20) - 1
    assert f"{float(first['predicted_bytes'] or 0) / 2**20:,.0f} / 300 (**{error:+.0%}**)" in lines[4]
    assert "500 (calibration)" in as_markdown(result)


def test_cases_with_a_name_have_a_line_each(tmp_path: Path) -> None:
    result = compare(measured(tmp_path, cases={"plain": {}, "wide": {"model.dim": 32}}), "wide")
    lines = as_markdown(result).splitlines()
    assert lines[2] == "| case | predicted / measured |"
    assert lines[5].startswith("| wide | ")
    assert lines[-1] == "| wide | 500 (calibration) |"


def test_the_report_says_how_far_predictions_are_off(tmp_path: Path) -> None:
    result = compare(measured(tmp_path, axes={"engine.zero_stage": [0, 2]}), None)
    assert is_training(result)
    cases = training_cases(result.rows)
    said = " ".join(training_summary(cases))
    assert "The predicted memory is off by" in said
    assert "The predicted step time is off by" in said
    assert "median of 1 case," in said
    table = foreseen_table(cases)
    assert table is not None
    assert [line[0].text for line in table.lines] == ["zero_stage=2"]
    assert table.lines[0][-1].text == f"{100 * float(result.rows[1]['step_error'] or 0):+.0f}%"


def test_a_case_that_was_not_measured_cannot_calibrate(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'huge' is no case that was measured; those are plain"):
        compare(measured(tmp_path, cases={"plain": {}}), "huge")
