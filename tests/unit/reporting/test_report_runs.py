"""A report on several runs, and one run as Markdown."""

from pathlib import Path

import numpy as np
import pytest
from fabricated_bench import training_rows, write_bench
from fabricated_run import ENVIRONMENT, complete_records, config_values, evaluation_in_depth, train_record, write_run
from html_page import Page, check_accessible, check_self_contained
from test_report_diff import write_evaluated
from typer.testing import CliRunner

from genrec.cli import app
from genrec.errors import DataError
from genrec.reporting.document_page import document_page
from genrec.reporting.markdown import document_markdown
from genrec.reporting.report import report_document
from genrec.reporting.runs_charts import runs_charts
from genrec.reporting.runs_read import read_runs


def page_of(*paths: Path) -> Page:
    shown = Page(document_page(report_document(paths)))
    check_self_contained(shown, with_script=True)
    check_accessible(shown)
    return shown


def test_runs_side_by_side(tmp_path: Path) -> None:
    base, better = write_evaluated(tmp_path / "base", 0), write_evaluated(tmp_path / "better", 5, rate=1.5)
    document = report_document([base, better])
    shown = page_of(base, better)
    assert document.summary[0].startswith("Fastest: `better` with 9")
    assert "1.5× the slowest" in document.summary[0]
    assert document.summary[1].startswith("Best on test: `better` with NDCG@10 0.")
    assert "1 of 1 differ from the first beyond noise" in document.summary[1]
    assert "better beyond noise" in shown.text
    labels = [str(chart["aria-label"]).partition(",")[0] for chart in shown.all("svg")]
    assert labels == [
        "Training loss over events trained on",
        "Training loss over time",
        "Validation NDCG@10 over time",
        "Test NDCG@10",
    ]
    for title in ("Protocol", "What the runs set otherwise than the first", "Run them again"):
        assert title in shown.text
    assert "genrec train" in shown.text


def test_other_protocols_are_not_ranked(tmp_path: Path) -> None:
    paths = [write_evaluated(tmp_path / "a", 0), write_evaluated(tmp_path / "b", 0, filter_seen=True)]
    shown = page_of(*paths)
    assert "Quality is not compared." in shown.text
    assert "filter_seen is False and True" in shown.text
    assert "Best on test" not in shown.text
    assert "Verdict" not in shown.text


def test_a_run_without_a_test_is_named_and_left_out(tmp_path: Path) -> None:
    paths = [write_evaluated(tmp_path / name, 0) for name in ("a", "b")]
    config = config_values(name="young")
    young = write_run(tmp_path / "young", [train_record(10)], config=config).root
    shown = page_of(*paths, young)
    assert "Without a test result, and left out: young." in shown.text
    assert "Without a test result: young ." in shown.text


def test_one_run_as_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**ENVIRONMENT, "command": "genrec train configs/a.yaml"}
    write_run(tmp_path / "run", complete_records(300), evaluated=evaluation_in_depth(), environment=environment)
    shown = CliRunner().invoke(app, ["report", "run", "--markdown", "run.md"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert not (tmp_path / "run" / "report.html").exists()
    text = (tmp_path / "run.md").read_text()
    assert "| NDCG@10 | **0.0406** | 0.0365 to 0.0447 | 0.0045 |" in text
    assert "| Filter seen | no |" in text
    assert "genrec train configs/a.yaml    # sasrec-beauty, commit 4f1c9b2" in text
    assert "| versions.torch | 2.13.0 |" in text
    assert "| model.dropout | 0.5 |" in text


def test_one_run_alone_has_its_own_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records(300))
    assert CliRunner().invoke(app, ["report", str(run.root)], catch_exceptions=False).exit_code == 0
    text = run.report_path.read_text()
    elsewhere = tmp_path / "pages" / "one.html"
    arguments = ["report", str(run.root), "--html", str(elsewhere)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert elsewhere.read_text() == text


def test_runs_and_benchmarks_on_one_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records(300)).root
    document = report_document([run, write_bench(tmp_path / "b.json", training_rows(1))])
    assert document.lead == "1 run and 1 benchmark"
    assert any(sentence.startswith("training: Fastest") for sentence in document.summary)
    assert "Run it again" in document_markdown(document)


def test_runs_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, complete_records(300)).root for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]


def test_events_are_epochs_times_the_events_of_one(tmp_path: Path) -> None:
    records = [train_record(step, events_per_s=1_000.0) for step in range(10, 200, 10)]
    for record in records[8:]:  # a validation of ten minutes between two lines
        record["elapsed_s"] += 600
    (run,) = read_runs([write_run(tmp_path / "run", records).root])
    events = run.history.events_trained
    assert events[-1] == pytest.approx(190 * 0.12 * 1_000)
    assert np.all(np.diff(events) > 0)
    (one,) = read_runs([write_run(tmp_path / "one", [train_record(10)]).root])
    assert np.isnan(one.history.events_trained).all()


def test_curves_with_nothing_to_draw_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_record(10, loss=None)]).root
    assert runs_charts(read_runs([run])) == []
    many = [write_run(tmp_path / f"r{n}", complete_records(60)).root for n in range(9)]
    charts = runs_charts(read_runs(many))
    assert "The first 8 of 9 runs." in charts[0].caption


def test_a_damaged_run_is_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records(60), evaluated={})
    other = write_run(tmp_path / "other", complete_records(60)).root
    run.evaluation_path.write_text("{")
    with pytest.raises(DataError, match="is damaged: it is not JSON"):
        report_document([run.root, other])
    run.evaluation_path.write_text('{"test": 3}')
    with pytest.raises(DataError, match="holds no object under 'test'"):
        report_document([run.root, other])
    (other / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="has recorded nothing yet"):
        report_document([other])
