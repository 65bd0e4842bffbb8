"""`genrec report --diff`: what changed between two results or two runs, and the gate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_bench import MACHINE, other_rows, training_rows, write_bench
from fabricated_run import ENVIRONMENT, PROTOCOL, complete_records, config_values, write_run
from html_page import Page, check_accessible, check_self_contained
from typer.testing import CliRunner

from genrec.bench.result import Row
from genrec.cli import app
from genrec.errors import ConfigError, DataError, ProtocolError
from genrec.evaluation.user_ranks import UserRanks, write_ranks
from genrec.reporting.diff import Diff, diff_of, machine_differences
from genrec.reporting.sources import read_sources

NUM_USERS = 800


def diff(*paths: Path, threshold: float = 0.05, strict: bool = False) -> Diff:
    return diff_of(read_sources(paths), threshold, strict=strict)


def gate(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `genrec report --diff ... --gate`; an error of genrec is raised."""
    shown = CliRunner().invoke(app, ["report", "--diff", "--gate", *map(str, arguments)])
    if shown.exception is not None and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    return shown.exit_code, shown.output


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_bench(tmp_path / "base.json", training_rows())


def test_a_slower_result_has_a_line_for_each_case(base: Path) -> None:
    slower = write_bench(base.with_name("slower.json"), training_rows(faster=0.9))
    found = diff(base, slower)
    assert len(found.regressions) == 12
    assert {change.verdict for change in found.regressions} == {"slower"}
    assert all(change.relative == pytest.approx(-0.1) for change in found.regressions)
    assert {c.verdict for c in found.changes if c.what == "peak memory"} == {"within noise"}
    code, text = gate(base, slower)
    assert code == 1
    assert text.count("regression: ") == 12
    assert "regression: zero0-1w: events/s 20,014 -> 18,013 (-10.0%): slower" in text
    assert gate(slower, base) == (0, "No regression in 24 numbers.\n")
    assert gate(base, slower, "--threshold", 11)[0] == 0


def test_a_heavier_result_is_a_regression(base: Path) -> None:
    heavier = write_bench(base.with_name("heavier.json"), training_rows(heavier=1.2))
    assert {change.verdict for change in diff(base, heavier).regressions} == {"more memory"}
    assert diff(heavier, base).regressions == []


def test_noise_hides_a_change(base: Path) -> None:
    def noisy(scale: float) -> list[Row]:
        rates = (80.0, 100.0, 130.0)
        return [{"case": "a", "status": "ok", "repetition": n, "events_per_s": scale * r} for n, r in enumerate(rates)]

    first = write_bench(base.with_name("first.json"), noisy(1.0))
    second = write_bench(base.with_name("second.json"), noisy(0.8))
    assert [change.verdict for change in diff(first, second).changes] == ["within noise"]
    assert diff(first, write_bench(base.with_name("third.json"), noisy(0.5))).regressions


def test_a_case_that_fails_or_is_gone_is_a_regression(base: Path) -> None:
    rows = training_rows()
    kept = [row for row in rows if row["case"] != "zero3-4w"]
    broken: list[Row] = [{**r, "status": "failed", "error": "x"} if r["case"] == "zero2-1w" else r for r in kept]
    other = write_bench(base.with_name("other.json"), broken)
    assert [change.sentence for change in diff(base, other).regressions] == [
        "zero2-1w: status ok -> failed: was ok, now failed",
        "zero3-4w: status ok -> –: gone",
    ]
    back = diff(other, base)
    assert back.regressions == []
    assert "zero3-4w: status – -> ok: new" in [change.sentence for change in back.changes]


def test_one_reading_gets_no_verdict_and_no_gate(base: Path) -> None:
    once = write_bench(base.with_name("once.json"), training_rows(1))
    again = write_bench(base.with_name("again.json"), training_rows(1, faster=0.5))
    found = diff(once, again)
    assert {change.verdict for change in found.changes} == {"one reading, no verdict"}
    assert "12 cases were read once on a side" in found.notes[0]
    with pytest.raises(ConfigError, match="measure with more repetitions"):
        gate(once, again)


def test_a_case_that_begins_to_fail_is_judged_after_one_reading(base: Path) -> None:
    once = write_bench(base.with_name("once.json"), training_rows(1))
    failed = [{**row, "status": "failed"} if row["case"] == "zero0-1w" else row for row in training_rows(1)]
    code, said = gate(once, write_bench(base.with_name("failed.json"), failed))
    assert code == 1
    assert "regression: zero0-1w: status ok -> failed" in said


def test_no_gate_passes_where_every_case_fails_on_both_sides(base: Path) -> None:
    rows: list[Row] = [{**row, "status": "timed-out"} for row in training_rows(2)]
    sides = [write_bench(base.with_name(f"{name}.json"), rows) for name in ("before", "after")]
    with pytest.raises(ConfigError, match=r"No case of .* has a reading on both sides"):
        gate(*sides)
    assert diff(*sides).changes == ()


def test_no_gate_passes_for_runs_with_nothing_to_compare(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, complete_records(600)[:1]).root for name in ("a", "b")]
    with pytest.raises(ConfigError, match="no gate can judge; train them for longer"):
        gate(*paths)


def test_other_machines_are_said_and_no_gate_judges_them(base: Path) -> None:
    machine = {**MACHINE, "cores": 2, "load_average_1_min": 3.0, "system": "Linux 7"}
    other = write_bench(base.with_name("other.json"), training_rows(), machine=machine)
    assert diff(base, other).other_machine == ["cores: 8 -> 2"]
    with pytest.raises(ConfigError, match=r"different machines \(cores: 8 -> 2\)"):
        gate(base, other)
    assert gate(base, other, "--allow-other-machine")[0] == 0
    shown = CliRunner().invoke(app, ["report", "--diff", str(base), str(other)], catch_exceptions=False)
    assert "Measured on different machines" in shown.output


def test_memory_may_vary_a_little() -> None:
    assert machine_differences({"memory_bytes": 100}, {"memory_bytes": 101}) == []
    assert machine_differences({"memory_bytes": 2**30}, {"memory_bytes": 2**31}) == ["memory_bytes: 1 GiB -> 2 GiB"]
    assert machine_differences({"gpu": "A"}, {}) == ["gpu: A -> null"]


def test_results_of_any_shape_are_compared_by_their_units(base: Path) -> None:
    slow: list[Row] = [{**row, "events_per_s": 0.5 * float(row["events_per_s"] or 0)} for row in other_rows()]
    first = write_bench(base.with_name("l1.json"), other_rows(), "losses")
    second = write_bench(base.with_name("l2.json"), slow, "losses", versions={"torch": "2.14"})
    found = diff(first, second)
    assert [change.subject for change in found.regressions][:2] == ["64, full, null", "64, <sampled>, null"]
    assert found.versions == ["ray: '2.60.0' -> None", "torch: '2.13.0+cpu' -> '2.14'"]
    with pytest.raises(ConfigError, match="share no case"):
        diff(base, first)


def test_rows_of_any_shape_may_fail(base: Path) -> None:
    rows: list[Row] = [{"side": "a", "status": "ok", "wall_s": 1.0 + n / 100} for n in range(3)]
    first = write_bench(base.with_name("p1.json"), rows, "prepare")
    failed: list[Row] = [*rows[:2], {"side": "a", "status": "killed", "wall_s": None}]
    second = write_bench(base.with_name("p2.json"), failed, "prepare")
    found = diff(first, second)
    assert [change.sentence for change in found.regressions] == ["a: status ok -> killed: was ok, now killed"]
    assert found.changes[1].verdict == "within noise"


def test_a_difference_needs_two_of_one_kind(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", complete_records()).root
    for paths in ((base,), (base, run), (base, base)):
        with pytest.raises(ConfigError, match="--diff needs two different runs or benchmark results"):
            diff(*paths)
    shown = CliRunner().invoke(app, ["report", "--gate", str(base)])
    assert isinstance(shown.exception, ConfigError)


def write_evaluated(folder: Path, shift: int, *, rate: float = 1.0, memory: float = 1.0, **card: Any) -> Path:
    """An evaluated run whose ranks are better by `shift` for every third user."""
    records = [
        {**r, "events_per_s": rate * r["events_per_s"], "memory_bytes": memory * r["memory_bytes"]}
        if r["kind"] == "train"
        else r
        for r in complete_records(600)
    ]
    evaluated = {"test": {"protocol": {**PROTOCOL, **card}, "best_step": 600}}
    config = config_values(name=folder.name)
    run = write_run(folder, records, evaluated=evaluated, config=config, environment=ENVIRONMENT)
    ranks = 1 + np.random.default_rng(1).exponential(30, NUM_USERS).astype(np.int64)
    ranks[::3] = np.maximum(1, ranks[::3] - shift)
    everyone = np.stack([np.arange(NUM_USERS), ranks, ranks, ranks], axis=1)
    write_ranks(run.ranks_path("test"), UserRanks(everyone, 600, NUM_USERS))
    return folder


def test_runs_are_compared_in_quality_throughput_and_memory(tmp_path: Path) -> None:
    base = write_evaluated(tmp_path / "base", 0)
    same = write_evaluated(tmp_path / "same", 0, rate=0.98, memory=1.03)
    assert gate(base, same)[0] == 0
    worse = write_evaluated(tmp_path / "worse", -5, rate=0.8, memory=1.5)
    found = diff(base, worse)
    assert [(change.subject, change.verdict) for change in found.regressions] == [
        ("quality", "worse"),
        ("throughput", "slower"),
        ("memory", "more memory"),
    ]
    assert found.settings == ["name: 'base' -> 'worse'"]
    assert gate(base, worse)[0] == 1
    assert diff(worse, base).regressions == []


def test_runs_of_other_protocols_are_not_ranked(tmp_path: Path) -> None:
    base = write_evaluated(tmp_path / "base", 0)
    other = write_evaluated(tmp_path / "other", 0, filter_seen=True)
    found = diff(base, other)
    assert "Quality is not compared." in found.notes[0]
    assert {change.subject for change in found.changes} == {"throughput", "memory"}
    with pytest.raises(ProtocolError, match="filter_seen"):
        gate(base, other)
    bare = write_run(tmp_path / "bare", complete_records(600), environment=ENVIRONMENT).root
    with pytest.raises(DataError, match="no evaluation"):
        gate(base, bare)


def test_untested_runs_still_have_their_throughput(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, complete_records(600)).root for name in ("a", "b")]
    found = diff(*paths, strict=True)
    assert found.notes == ("Neither run has a test result, so quality is not compared.",)
    assert [change.verdict for change in found.changes] == ["within noise", "within noise"]


def test_a_difference_is_a_page_and_markdown(base: Path, tmp_path: Path) -> None:
    slower = write_bench(base.with_name("slower.json"), training_rows(faster=0.9), commit="feedbeef")
    html, markdown = tmp_path / "d.html", tmp_path / "d.md"
    arguments = ["report", "--diff", str(base), str(slower), "--html", str(html), "--markdown", str(markdown)]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "zero0-1w" in shown.output
    page = Page(html.read_text())
    check_self_contained(page, with_script=True)
    check_accessible(page)
    assert "12 regressions; 12 numbers within noise." in page.text
    assert "more, in the table" not in page.text
    assert "Settings The same on both sides." in page.text
    assert "| commit | '4c5f88e534a3' -> 'feedbeef' |" in markdown.read_text()


def test_settings_that_changed_are_named(base: Path) -> None:
    values = json.loads(base.read_text())
    values["config"]["repetitions"] = 5
    other = base.with_name("other.json")
    other.write_text(json.dumps(values))
    assert diff(base, other).settings == ["repetitions: 3 -> 5"]
