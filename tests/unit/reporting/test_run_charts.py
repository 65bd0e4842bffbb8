"""Which curves a run gets, and what their captions claim."""

import json
from pathlib import Path
from typing import Any

from fabricated_run import train_record, validation_record

from genrec.reporting.history import History, read_history
from genrec.reporting.plots import Chart
from genrec.reporting.run_charts import lines_per_point, run_charts


def history_of(folder: Path, records: list[dict[str, Any]]) -> History:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_history(path)


def charts(folder: Path, records: list[dict[str, Any]], metric: str = "ndcg@10") -> dict[str, Chart]:
    return {chart.title: chart for chart in run_charts(history_of(folder, records), metric)}


def test_a_column_without_values_has_no_chart(tmp_path: Path) -> None:
    shown = charts(tmp_path, [train_record(10, memory_bytes=0, gradient_norm=None)])
    assert list(shown) == ["Training loss", "Throughput", "Data wait", "Learning rate"]


def test_captions_name_the_unit_and_the_extremes(tmp_path: Path) -> None:
    records = [train_record(step, loss=loss) for step, loss in ((10, 6.0), (20, 4.5), (30, 5.0))]
    shown = charts(tmp_path, records)
    assert shown["Training loss"].value == "5 last"
    assert shown["Training loss"].caption == "Nats per target. Lowest 4.5 at step 20."
    assert shown["Peak memory"].caption.startswith("GiB")
    assert shown["Data wait"].caption.startswith("Percent")
    assert ">60k<" in shown["Throughput"].svg


def test_a_peak_in_the_gradient_norm_brings_a_log_scale(tmp_path: Path) -> None:
    calm = [train_record(step, gradient_norm=1.0) for step in (10, 20, 30)]
    assert ">100<" not in charts(tmp_path, calm)["Gradient norm"].svg
    wild = charts(tmp_path, [*calm, train_record(40, gradient_norm=10_000.0)])["Gradient norm"]
    assert ">100<" in wild.svg
    assert "Peak 10,000." in wild.caption


def test_the_metric_that_decides_comes_first(tmp_path: Path) -> None:
    records = [validation_record(60), validation_record(120, best=True)]
    shown = charts(tmp_path, records, metric="hr@10")
    chart = shown["Validation HR@10"]
    assert chart.value == f"{records[1]['metrics']['hr@10']:.4f} best"
    assert "The ring marks the best, at step 120 (epoch 2)." in chart.caption
    assert charts(tmp_path, records, metric="hr@5") == {}


def test_quality_over_time_tells_when_it_was_nearly_there(tmp_path: Path) -> None:
    levels = {30: 0.2, 60: 0.5, 90: 0.97, 120: 1.0}
    records = [
        {**validation_record(step), "elapsed_s": float(step), "metrics": {"ndcg@10": level}}
        for step, level in levels.items()
    ]
    chart = charts(tmp_path, records)["NDCG@10 over time"]
    assert chart.value == "95% in 1 min 30 s"
    assert chart.caption.startswith("Minutes of training")


def test_lines_per_point(tmp_path: Path) -> None:
    assert lines_per_point(history_of(tmp_path, [train_record(step) for step in range(1, 161)])) == 1
    assert lines_per_point(history_of(tmp_path, [train_record(step) for step in range(1, 162)])) == 2
