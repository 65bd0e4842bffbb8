"""`write_report`: one page per run that is whole, safe, accessible and small."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import (
    ENVIRONMENT,
    complete_records,
    config_values,
    evaluation,
    evaluation_in_depth,
    start_record,
    train_record,
    validation_record,
    write_manifest,
    write_run,
)
from html_page import Page, check_accessible, check_self_contained

from genrec.errors import DataError, RunError
from genrec.reporting import page
from genrec.reporting.run_report import write_report
from genrec.run_dir import RunDir


def report(run: RunDir) -> tuple[str, Page]:
    path = write_report(run)
    assert path == run.report_path
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def complete_run(folder: Path, **arguments: Any) -> RunDir:
    return write_run(folder / "run", complete_records(), evaluated=evaluation(), environment=ENVIRONMENT, **arguments)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The page of a complete run whose prepared data set is at hand."""
    folder = tmp_path_factory.mktemp("complete")
    write_manifest(folder / "prepared", {"ndcg@10": 0.0431})
    return report(complete_run(folder, config=config_values(str(folder / "prepared"))))


def test_slices_intervals_and_lists_are_shown(tmp_path: Path) -> None:
    text, shown = report(write_run(tmp_path / "run", complete_records(), evaluated=evaluation_in_depth()))
    sections = [attributes["id"] for attributes in shown.all("section")]
    assert sections[:3] == ["result", "slices", "protocol"]
    check_self_contained(shown)
    check_accessible(shown)
    for words in (
        "0.0365 to 0.0447",
        "Coverage@10 42%",
        "12.3 bits",
        "Action accuracy 85% (most frequent action: 71%)",
        "Action log loss 0.412 (shares of the actions: 0.701)",
        "Dwell error 0.654 (median of all: 0.912)",
        "History length",
        "8-15 16,773 75% 0.0512 0.0017",
    ):
        assert words in shown.text
    assert "&lt;track&gt;" in text


def test_what_another_model_answers_stands_beside_the_run(tmp_path: Path) -> None:
    run = complete_run(tmp_path)
    told = evaluation()["test"]
    told["metrics"] = {name: 1.1 * value for name, value in told["metrics"].items()}
    told["protocol"] = {**told["protocol"], "answered_by": "the 50 best of it in the order of the scores of <dense>"}
    run.served_evaluation_path.write_text(json.dumps({"test": told}))
    _, shown = report(run)
    sections = [attributes["id"] for attributes in shown.all("section")]
    assert sections[:3] == ["result", "protocol", "served"]
    check_accessible(shown)
    part = shown.text[shown.text.index("Metric Served The run's own Ratio") : shown.text.index("Curves Over")]
    assert "NDCG@10 0.0447 0.0406 1.1×" in part
    assert "Answered by the 50 best of it in the order of the scores of <dense>" in part
    assert "Ties" not in part  # a line in which the two agree
    assert "left from an earlier evaluation" not in shown.text
    told["best_step"] = 600
    run.served_evaluation_path.write_text(json.dumps({"test": told}))
    assert "own are of step 1320 and these of step 600" in report(run)[1].text
    run.served_evaluation_path.write_text("{")
    with pytest.raises(DataError, match=r"evaluation-served.json is damaged"):
        write_report(run)


def test_a_complete_run_shows_everything(complete: tuple[str, Page]) -> None:
    _, shown = complete
    sections = [attributes["id"] for attributes in shown.all("section")]
    assert sections == ["result", "protocol", "curves", "starts", "data", "config", "environment"]
    charts = [attributes["aria-label"] or "" for attributes in shown.all("svg")]
    assert [chart.partition(" over")[0] for chart in charts] == [
        "Training loss",
        "Validation metrics",
        "NDCG@10",
        "Throughput",
        "Data wait",
        "Peak memory",
        "Gradient norm",
        "Learning rate",
        "Loss",
        "Loss",
    ]
    assert "Finished Step 1,800, epoch 30" in shown.text
    assert "NDCG@10 0.0406 0.0045 9.02× 0.0431 94%" in shown.text
    assert "The ring marks the best, at step 1,320 (epoch 22)" in shown.text
    assert "against the model: items that score the same" in shown.text
    assert "2.13.0" in shown.text


def test_the_page_needs_no_other_file_and_links_only_inside(complete: tuple[str, Page]) -> None:
    check_self_contained(complete[1])


def test_the_page_is_accessible(complete: tuple[str, Page]) -> None:
    check_accessible(complete[1])


def test_what_a_user_can_write_is_text_and_never_markup(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>"
    values = config_values(tracking={"wandb_project": attack}, sequence={"max_length": 20})
    values["data"]["source"]["path"] = f'"><img src=x onerror=alert(1)>{attack}'
    records = [
        {**start_record(0), "launcher": attack, "startup": {attack: 1.0}},
        train_record(10),
        {**validation_record(20, best=True), "metrics": {"ndcg@10": 0.1, f"{attack}@10": 0.2}},
    ]
    evaluated = {"test": {**evaluation()["test"], "protocol": {attack: attack}}}
    evaluated["test"]["metrics"][attack] = 0.5
    run = write_run(
        tmp_path / "run", records, evaluated=evaluated, config=values, environment={attack: {attack: attack}}
    )
    text, shown = report(run)
    assert "<script" not in text.lower()
    assert not shown.all("script")
    assert not shown.all("img")
    assert "&lt;script&gt;alert(" in text
    assert shown.text.count("<script>alert('x')</script>".lower()) >= 5


def test_a_run_in_progress_gets_a_page(tmp_path: Path) -> None:
    records = [start_record(0), *(train_record(step) for step in range(10, 130, 10)), validation_record(60, best=True)]
    _, shown = report(write_run(tmp_path / "run", records))
    assert "Not finished" in shown.text
    assert "There is no test result yet" in shown.text
    assert "best, at step 60" in shown.text
    assert "The data section is left out" in shown.text
    assert "recorded no environment.json" in shown.text
    assert "result" not in [attributes["id"] for attributes in shown.all("section")]


def test_what_the_last_start_said_of_seldom_meant_settings_is_at_the_top(tmp_path: Path) -> None:
    records = [
        {**start_record(0), "cautions": ["The warm-up never ends."]},
        {**start_record(9, resumed=True), "cautions": ["Cosines hardly differ."]},
    ]
    text, shown = report(write_run(tmp_path / "run", records))
    assert '<p class="alert" role="note">Cosines hardly differ.</p>' in text
    assert "never ends" not in shown.text


def test_a_run_that_has_only_started_gets_a_page(tmp_path: Path) -> None:
    _, shown = report(write_run(tmp_path / "run", [start_record(0)]))
    assert "No training step has been recorded yet" in shown.text
    assert not shown.all("svg")
    assert "Ray start" in shown.text


def test_an_evaluation_alone_gets_a_page(tmp_path: Path) -> None:
    _, shown = report(write_run(tmp_path / "run", [], evaluated=evaluation()))
    assert "0.0406" in shown.text
    assert not shown.all("svg")


def test_validation_metrics_stand_in_for_a_missing_test(tmp_path: Path) -> None:
    _, shown = report(write_run(tmp_path / "run", complete_records(300), evaluated=evaluation("validation")))
    assert "Validation metrics of 22,363 users, with the weights of step 1,320" in shown.text
    assert "Not finished" in shown.text


def test_a_resumed_run_shows_the_steps_that_led_to_the_weights(tmp_path: Path) -> None:
    records = [
        start_record(0),
        *(train_record(step, loss=8.0) for step in range(10, 210, 10)),
        start_record(150, resumed=True),
        *(train_record(step, loss=7.0) for step in range(160, 260, 10)),
    ]
    text, shown = report(write_run(tmp_path / "run", records))
    assert "A dashed upright is a restart" in shown.text
    assert "stroke-dasharray" in text
    assert "The run was started 2 times, 1 of them from a checkpoint; 50 logged steps were done again." in shown.text
    assert "Step 250" in shown.text
    assert "7 last" in shown.text


def test_a_cut_last_line_is_no_obstacle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records(120))
    whole = run.metrics_path.read_text()
    run.metrics_path.write_text(whole[:-25])
    _, shown = report(run)
    assert "Step 120" in shown.text  # its training line; the validation of step 120 was cut


def test_a_loss_that_is_not_finite_is_called_out(tmp_path: Path) -> None:
    bad = {50: math.nan, 60: math.inf}
    records = [start_record(0)]
    records += [train_record(step, **({"loss": bad[step]} if step in bad else {})) for step in range(10, 110, 10)]
    text, shown = report(write_run(tmp_path / "run", records))
    assert "The loss is not a finite number in 2 log lines, first at step 50" in shown.text
    assert "A cross at the foot" in shown.text
    assert "var(--warning)" in text[text.index("<figure") :]
    before_the_config = shown.text[: shown.text.index("What this run sets")]  # which has a setting for NaN steps
    assert "nan" not in before_the_config.lower()


def test_a_run_whose_every_loss_is_nan_gets_a_page(tmp_path: Path) -> None:
    records = [train_record(10, loss=math.nan), train_record(20, loss=math.nan)]
    _, shown = report(write_run(tmp_path / "run", records))
    assert "not a finite number in 2 log lines" in shown.text
    assert "Training loss" not in shown.text


def test_one_point_is_enough(tmp_path: Path) -> None:
    _, shown = report(write_run(tmp_path / "run", [train_record(10), validation_record(10, best=True)]))
    assert len(shown.all("svg")) == 8


def test_a_long_run_stays_under_a_megabyte(tmp_path: Path) -> None:
    template = train_record(10)
    records = [start_record(0), *({**template, "step": step, "loss": 5 + step % 7} for step in range(1, 200_001))]
    records += [validation_record(step) for step in range(100, 200_001, 100)]
    records += [start_record(200_000, resumed=True) for _ in range(500)]
    run = write_run(tmp_path / "run", records, evaluated=evaluation())
    text, shown = report(run)
    assert len(text.encode()) < 1_000_000
    assert "A line is the mean of 1250 log lines" in shown.text
    assert "The last 60 are listed" in shown.text


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records(120), evaluated=evaluation(), environment=ENVIRONMENT)
    assert report(run)[0] == report(run)[0]
    assert sorted(path.name for path in run.root.iterdir()) == [
        "config.yaml",
        "environment.json",
        "evaluation.json",
        "metrics.jsonl",
        "report.html",
    ]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run directory"):
        write_report(RunDir(tmp_path))


def test_a_run_with_nothing_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has recorded nothing yet; start it with `genrec train CONFIG`"):
        write_report(write_run(tmp_path / "run", []))
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is damaged"), ("[1]", "must hold a JSON object, not a list"), ('{"test": 3}', "no object under 'test'")],
)
def test_a_damaged_evaluation_is_named(tmp_path: Path, content: str, message: str) -> None:
    run = complete_run(tmp_path)
    run.evaluation_path.write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(run)


def test_a_damaged_environment_is_named(tmp_path: Path) -> None:
    run = complete_run(tmp_path)
    run.environment_path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"environment\.json is damaged"):
        write_report(run)


def test_a_page_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    run = complete_run(tmp_path)
    run.report_path.mkdir()
    (run.report_path / "in the way").touch()
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_report(run)


def test_text_colours_are_readable_in_both_schemes() -> None:
    """WCAG 2.1 AA: a contrast of at least 4.5 between text and ground."""
    css = (page.TEMPLATES / "page.css").read_text()
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css.partition("@media")[0]))
    dark = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css.partition("@media")[2].partition("\n}\n")[0]))
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for text in ("ink", "muted", "accent", "line-2", "line-3", "warning"):
            assert contrast(scheme[text], scheme["ground"]) >= 4.5, text
        assert contrast(scheme["accent"], scheme["accent-soft"]) >= 4.5
        assert contrast(scheme["ink"], scheme["warning-soft"]) >= 4.5


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two `#rrggbb` colours (WCAG 2.1)."""
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_variable_that_a_chart_uses_is_defined(complete: tuple[str, Page]) -> None:
    text, _ = complete
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    defined = set(re.findall(r"--([\w-]+):", text))
    assert used - defined == set()
    assert "accent" in used
