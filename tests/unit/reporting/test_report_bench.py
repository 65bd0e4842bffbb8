"""What a report says of benchmarks: of training, of any other shape, with values missing, failed, or damaged."""

import json
from pathlib import Path

import pytest
import yaml
from fabricated_bench import MACHINE, other_rows, result_of, scaling_rows, training_rows, write_bench
from html_page import Page, check_accessible, check_self_contained
from typer.testing import CliRunner

from genrec.bench.result import Row
from genrec.cli import app
from genrec.errors import DataError, RunError
from genrec.reporting.bars import MAX_BARS, Bar, stacked_bars
from genrec.reporting.bench_cases import CaseLabels, training_cases
from genrec.reporting.bench_charts import training_charts
from genrec.reporting.bench_sections import busy_alert, commands, mixed_alert
from genrec.reporting.bench_summary import training_figures, training_summary
from genrec.reporting.bench_tables import case_table, medians_table, rows_table
from genrec.reporting.document import Table
from genrec.reporting.document_page import document_page, write_file
from genrec.reporting.markdown import document_markdown
from genrec.reporting.report import report_document


def page_of(*paths: Path) -> Page:
    shown = Page(document_page(report_document(paths)))
    check_self_contained(shown, with_script=True)
    check_accessible(shown)
    return shown


def texts(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in line] for line in table.lines]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bench(tmp_path_factory.mktemp("bench") / "zero.json", training_rows())


def test_the_summary_is_computed_from_the_cases() -> None:
    cases = training_cases(training_rows())
    said = training_summary(cases)
    rates = [row["events_per_s"] for row in training_rows() if row["case"] == "zero0-4w"]
    assert f"Fastest: `zero0-4w` with {sorted(rates)[1]:,.0f} events/s (3 readings within" in said[0]
    assert said[0].endswith("MFU 21% measured matmul rate.")
    assert "4 workers have 3.48 times the throughput of 1 (zero_stage 0): 87% scaling efficiency" in said[1]
    assert "ZeRO-3 needs 43% less memory than ZeRO-0 with 4 workers: 249 MiB instead of 440 MiB" in said[2]
    assert "The predicted memory is off by 5.8% in the median of 12 cases" in said[3]
    assert "The predicted step time is off by 10%" in said[4]
    assert said[5] == "2 of 14 cases did not go well: `long` (out of memory), `slow` (timed out)."
    figures = {row.name: row.value for row in training_figures(cases)}
    assert figures["Cases"] == "12 of 14"
    assert figures["Memory saved"] == "43%"


def test_stages_are_judged_over_all_settings_and_not_by_the_best_one() -> None:
    """ZeRO-1 saves in one setting of three, ZeRO-2 in two."""
    peaks = {64: (100, 120, 90), 128: (200, 210, 150), 256: (400, 300, 420)}
    rows: list[Row] = [
        {"case": f"{dim} {stage}", "model.dim": dim, "engine.zero_stage": stage, "status": "ok", "workers": 2}
        | {"peak_bytes": peak}
        for dim, of_dim in peaks.items()
        for stage, peak in enumerate(of_dim)
    ]
    cases = training_cases([{**row, "mode": "full"} for row in rows])
    assert training_summary(cases)[0] == (
        "Peak memory beside ZeRO-0 with 2 workers, median and range of 3 settings: ZeRO-1 5.0% more (25% less to 20% "
        "more), ZeRO-2 10% less (25% less to 5.0% more)."
    )
    assert {row.name: row.value for row in training_figures(cases)}["Memory saved"] == "10%"
    worse = [case for case in cases if case.axes["engine.zero_stage"] < 2]
    assert "Memory saved" not in {row.name for row in training_figures(worse)}


def test_what_workers_keep_is_said_by_stage() -> None:
    rows: list[Row] = [
        {"case": f"{workers} at {stage}", "engine.zero_stage": stage, "cluster.workers": workers, "workers": workers}
        | {
            "mode": "full",
            "status": "ok",
            "weights_bytes": 2**30,
            "optimizer_bytes": 2**31 // workers**stage,
        }
        for workers in (1, 4)
        for stage in (0, 1)
    ]
    cases = training_cases(rows)
    assert training_summary(cases)[0] == (
        "From step to step each of 4 workers keeps of weights and of optimizer state: 1 GiB and 2 GiB at ZeRO-0, "
        "1 GiB and 512 MiB at ZeRO-1."
    )
    assert [column.name for column in case_table(cases).columns][-2:] == ["Weights kept", "Optimizer kept"]


def test_a_reader_is_told_what_was_measured_and_what_the_words_mean(tmp_path: Path) -> None:
    config = {
        "base": {"model": {"name": "sasrec", "dim": 64}, "cluster": {"workers": 2}},
        "axes": {"engine.zero_stage": [0, 1], "model.dim": [32, 64]},
        "repetitions": 3,
        "warmup_steps": 2,
        "steps": 5,
    }
    rows: list[Row] = [
        {"case": f"dim={dim} zero_stage={stage}", "engine.zero_stage": stage, "model.dim": dim, "mode": mode}
        | {"status": "ok", "workers": 2, "events_per_s": 9.0}
        for dim in (32, 64)
        for stage in (0, 1)
        for mode in ("full", "data-only")
    ]
    shown = page_of(write_bench(tmp_path / "zero.json", rows, "zero", config=config))
    assert (
        "4 cases of training, each measured 3 times, over 5 steps after 2 to warm up, in new processes. Varied: "
        "engine.zero_stage 0, 1; model.dim 32, 64. Alike in all: model.name sasrec, cluster.workers 2. Each in 2 "
        "modes: full, training; data-only, reading the data alone."
    ) in shown.text
    assert "What the words mean" in shown.text and "zero_stage (ZeRO)" in shown.text
    assert "MFU" not in shown.text  # nothing of it was measured
    assert "Benchmark: zero" in shown.text
    assert "which trains models that recommend the next item" in shown.text
    assert "measured on 8 cores, AMD EPYC, 23.5 GiB" in shown.text


def test_several_benchmarks_have_their_figures_and_results_first(tmp_path: Path) -> None:
    one = write_bench(tmp_path / "a.json", training_rows(1), "zero")
    two = write_bench(tmp_path / "b.json", scaling_rows({1: (100.0,), 2: (180.0,)}), "scaling")
    document = report_document([one, two])
    assert [section.title for section in document.sections] == [
        "What the words mean",
        "zero",
        "scaling",
        "How zero was measured",
        "How scaling was measured",
        "Write this report again",
    ]
    figures = [(row.name, row.hint) for row in document.figures]
    assert ("Scaling efficiency", "scaling: 1 to 2 workers") in figures
    assert ("Memory saved", "zero: ZeRO-3 beside ZeRO-0") in figures
    assert "Cases" not in {name for name, _ in figures}


def test_figures_with_too_many_cases_show_the_longest_bars_in_order() -> None:
    rows = [{**training_rows(1)[0], "case": f"c{place:02}", "peak_bytes": (place + 1) * 2**20} for place in range(20)]
    (memory,) = (chart for chart in training_charts("x", training_cases(rows)) if chart.title.startswith("Peak"))
    assert "The 16 of 20 cases that need most; the table has all." in memory.caption
    assert ">c04<" in memory.svg and ">c03<" not in memory.svg
    assert memory.svg.index(">c04<") < memory.svg.index(">c19<")


def test_a_slower_path_bounds_a_case() -> None:
    rates = {"full": 90.0, "data-only": 400.0, "compute-only": 100.0}
    rows: list[Row] = [{"case": "a", "mode": m, "status": "ok", "events_per_s": rate} for m, rate in rates.items()]
    said = training_summary(training_cases(rows))
    assert said[1] == (
        "Computing is the bottleneck of `a`: reading alone gives 400 events/s, computing alone 100, and both together "
        "90, 90% of the slower."
    )
    assert [case.label for case in training_cases(rows)] == ["a", "a, data-only", "a, compute-only"]


def test_a_page_of_training(training: Path) -> None:
    shown = page_of(training)
    assert [chart["aria-label"].partition(",")[0] for chart in shown.all("svg")] == [  # type: ignore[union-attr]
        "Throughput over workers",
        "Peak memory of a worker",
        "Where the time of a step goes",
    ]
    for text in ("MemoryError: 12.1 GiB wanted <by one step>", "genrec bench configs/bench/zero.yaml", "4c5f88e534a3"):
        assert text in shown.text
    assert "<by one step>" not in shown.html
    assert "git checkout 4c5f88e534a3" in shown.html


def test_markdown_has_the_same_content(training: Path) -> None:
    document = report_document([training])
    text = document_markdown(document)
    for sentence in document.summary:
        assert f"* {sentence}" in text
    for section in document.sections:
        assert f"## {section.title}" in text
    assert "| zero0-1w | 0 | 16384 | 1 | ok | 3 | **20," in text
    assert "wanted \\<by one step>" in text
    assert "```\ngit checkout 4c5f88e534a3\ngenrec bench configs/bench/zero.yaml\n```" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| zero0-1w | 0 |")}
    assert widths == {next(line.count("|") for line in text.splitlines() if line.startswith("| Case |"))}


@pytest.mark.parametrize(
    "missing", ["events_per_s", "peak_bytes", "predicted_bytes", "step_s", "workers", "mode", "error"]
)
def test_any_key_may_be_missing(tmp_path: Path, missing: str) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in training_rows(1)]
    shown = page_of(write_bench(tmp_path / "less.json", rows))
    assert "did not go well" in shown.text


def test_rows_with_hardly_anything(tmp_path: Path) -> None:
    rows: list[Row] = [{"case": "a", "status": "failed"}, {"case": "b", "status": "ok", "events_per_s": None}]
    shown = page_of(write_bench(tmp_path / "bare.json", rows))
    assert "1 of 2 cases did not go well: a (failed)." in shown.text
    assert shown.all("svg") == []
    empty = document_page(report_document([write_bench(tmp_path / "none.json", [])]))
    assert "nothing was measured" in Page(empty).text


def test_a_failed_repetition_fails_its_case() -> None:
    rows = training_rows(2)[:2]
    rows[1] = {**rows[1], "status": "failed", "error": "worker 1 died", "events_per_s": 1.0}
    (case,) = training_cases(rows)
    assert (case.status, case.error, case.is_ok) == ("failed", "worker 1 died", False)
    assert case.readings["events_per_s"] == (rows[0]["events_per_s"],)


def test_memory_without_a_prediction_is_one_bar(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("predicted")} for row in training_rows(1)]
    charts = training_charts("x", training_cases(rows))
    assert "Measured, the median." in charts[1].caption
    assert ">predicted<" not in charts[1].svg


def test_many_bars_are_cut_and_long_names_too() -> None:
    bars = [Bar(f"a-case-with-a-very-long-name-{place:02}", {"a": 1.0}) for place in range(MAX_BARS + 4)]
    svg = stacked_bars("many", bars, description="d", value_format=str)
    assert svg.count("a-case-with-a-very-long-n…") == MAX_BARS


def test_rows_of_any_shape_become_medians_with_their_spread(tmp_path: Path) -> None:
    table = rows_table(other_rows())
    assert table is not None
    assert [column.name for column in table.columns] == ["dim", "loss", "note", "readings", "events per s", "spread"]
    assert texts(table)[0] == ["64", "full", "–", "5", "10,100", "2.0%"]
    shown = page_of(write_bench(tmp_path / "losses.json", other_rows(), "losses", config={"items": 3_416}))
    assert "python benchmarks/losses.py" in shown.text
    assert "losses: 20 rows." in shown.text
    single = rows_table(
        [{"kind": "a", "wall_s": 1.5, "survived": True}, {"kind": "b", "wall_s": None, "survived": False}]
    )
    assert texts(single) == [["a", "true", "1.5 s"], ["b", "false", "–"]]
    assert rows_table([]) is None


def test_what_a_benchmark_comes_to() -> None:
    spread = {"median": 0.35, "minimum": 0.3, "maximum": 0.4, "count": 3}
    table = medians_table({"ratio": spread, "by": {"peak_bytes": 2**30}, "equal": True})
    assert texts(table) == [
        ["ratio", "0.35", "0.3", "0.4", "3"],
        ["by.peak_bytes", "1 GiB", "–", "–", "–"],
        ["equal", "true", "–", "–", "–"],
    ]
    assert medians_table({}) is None


def test_commands_name_the_commit() -> None:
    assert commands(result_of([], commit="unknown", config={}))[0].startswith("python benchmarks/training.py")
    dirty = commands(result_of([], commit="4c5f88e534a3-dirty", config={"command": ["genrec", "bench", "m.yaml"]}))
    assert dirty == ("git checkout 4c5f88e534a3    # and the changes that were not committed", "genrec bench m.yaml")


def test_a_matrix_is_written_out_to_be_measured_again() -> None:
    config = {"base": {"name": "x", "seed": 1}, "axes": {"engine.zero_stage": [0, 1]}, "cases": {}, "launcher": "local"}
    *_, file, text, end, command = commands(result_of(training_rows(1), config=config))
    assert (file, end, command) == ("cat > training.yaml <<'END'", "END", "genrec bench training.yaml --launcher local")
    assert yaml.safe_load(text) == {"base": config["base"], "axes": config["axes"]}


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    path = write_bench(tmp_path / "a.json", other_rows(), machine={**MACHINE, "load_average_1_min": 40.0})
    assert "a load of 40.0 on 8 cores" in page_of(path).text
    many = [result_of(other_rows(), f"r{n}", machine={**MACHINE, "load_average_1_min": 40.0}) for n in range(6)]
    (alert,) = busy_alert(many)
    assert "r3 (a load of 40.0 on 8 cores) and 2 more. Speeds" in alert
    assert busy_alert([result_of(other_rows())]) == []


def test_machines_of_two_kinds_are_said() -> None:
    rows: list[Row] = [{"case": "a", "status": "ok", "machine": kind} for kind in ("one", "two", "one")]
    (alert,) = mixed_alert(result_of(rows))
    assert "measured on 2 kinds of machines (one; two)" in alert
    assert mixed_alert(result_of(rows[:1])) == []


def test_cells_sort_by_their_number(training: Path) -> None:
    table = case_table(training_cases(training_rows()))
    place = [column.name for column in table.columns].index("Peak memory")
    assert [float(line[place].sort_key) for line in table.lines[:1]] == [
        training_cases(training_rows())[0].median("peak_bytes")
    ]
    assert table.lines[-1][place].sort_key == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[1]", "is not the result of a benchmark"),
        ('{"schema_version": 9}', "has schema version 9"),
        ('{"schema_version": 1}', "is not the result of a benchmark"),
    ],
)
def test_a_damaged_file_gets_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        report_document([path])
    assert "\n" not in str(caught.value)


def test_a_result_with_fields_of_other_kinds_is_refused(tmp_path: Path) -> None:
    path = write_bench(tmp_path / "a.json", training_rows(1))
    values = json.loads(path.read_text())
    for changes, words in (
        ({"rows": 3}, "rows is a int"),
        ({"rows": [3]}, "a row is no object"),
        ({"machine": None}, "machine"),
    ):
        path.write_text(json.dumps(values | changes))
        with pytest.raises(DataError, match=words):
            report_document([path])


def test_neither_run_nor_benchmark(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="is neither a run directory"):
            report_document([path])
    path = tmp_path / "bytes.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="it is not text"):
        report_document([path])


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another file with --html"):
        write_file(tmp_path / "file" / "page.html", "x", "--html")


def test_the_command_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bench(tmp_path / "out" / "a.json", training_rows(1))
    write_bench(tmp_path / "out" / "b.json", other_rows(), "losses")
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["report", "out", "--markdown", "r.md"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert not (tmp_path / "report.html").exists()
    assert "training: Fastest: `zero0-4w`" in (tmp_path / "r.md").read_text()
    assert CliRunner().invoke(app, ["report", "out"]).exit_code == 0
    assert "2 benchmarks" in Page((tmp_path / "report.html").read_text()).text


def test_made_names_give_way_to_the_settings_in_which_cases_differ() -> None:
    rows = [
        {"case": f"dim={dim} zero_stage={stage}", "model.dim": dim, "engine.zero_stage": stage, "batch.x": 1}
        | {"mode": "full", "status": "ok", "workers": 2, "events_per_s": 1000.0 * dim, "repetition": 0}
        for dim in (64, 128)
        for stage in (0, 3)
    ]
    cases = training_cases(rows)
    labels = CaseLabels.of(cases)
    assert [labels[case] for case in cases] == ["64 · 0", "64 · 3", "128 · 0", "128 · 3"]
    assert labels.explained == " Cases by dim and zero_stage."
    assert [column.name for column in case_table(cases).columns][:3] == ["dim", "zero_stage", "x"]
    given = training_cases([row | {"case": f"case {place}"} for place, row in enumerate(rows)])
    assert [CaseLabels.of(given)[case] for case in given] == ["case 0", "case 1", "case 2", "case 3"]
    assert case_table(given).columns[0].name == "Case"
