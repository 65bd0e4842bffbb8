"""The report on runs that were profiled: where the time of a step goes."""

import json
from pathlib import Path

import pytest
from fabricated_run import complete_records, config_values, write_run
from html_page import Page, check_accessible, check_self_contained

from genrec.errors import DataError
from genrec.reporting.bench_cases import STEP_PARTS
from genrec.reporting.markdown import document_markdown
from genrec.reporting.profiles import profile_section, read_profile
from genrec.reporting.report import report_document
from genrec.reporting.run_report import write_report
from genrec.run_dir import RunDir
from genrec.training.clock import SECTIONS


def profiled_run(folder: Path, name: str) -> RunDir:
    """A run of two workers, of which the second waits 20 ms more in communication and computes as much less."""
    run = write_run(folder, complete_records(60), config=config_values(name=name))
    workers = [{f"{part}_s": 0.01 for part in STEP_PARTS} for _ in range(2)]
    workers[0] |= {"forward_s": 0.1, "communication_s": 0.0}
    workers[1] |= {"forward_s": 0.08, "communication_s": 0.02}
    mean = {key: (workers[0][key] + workers[1][key]) / 2 for key in workers[0]}
    told = {"first_step": 5, "num_steps": 10, "step_s": sum(mean.values()), **mean, "of_workers": workers}
    (folder / "profile").mkdir()
    (folder / "profile" / "breakdown.json").write_text(json.dumps(told))
    return run


def test_parts_are_those_that_training_measures() -> None:
    assert set(SECTIONS) == set(STEP_PARTS)


def test_a_profile_has_a_line_for_each_part(tmp_path: Path) -> None:
    profile = read_profile(profiled_run(tmp_path / "run", "one"))
    assert profile is not None
    assert profile.step_s == pytest.approx(0.16)
    section = profile_section(profile)
    assert section is not None
    assert "over 10 steps from step 6 on (--profile); 56% of a step is forward." in section.text[0]
    lines = {line[0].text: [cell.text for cell in line[1:]] for line in section.tables[0].lines}
    assert lines["forward"] == ["90 ms", "56%", "80 ms", "100 ms"]
    assert lines["communication"] == ["10 ms", "6.2%", "0 ms", "20 ms"]
    assert len(lines) == len(STEP_PARTS)


def test_the_page_of_a_run_shows_its_profile(tmp_path: Path) -> None:
    run = profiled_run(tmp_path / "run", "one")
    shown = Page(write_report(run).read_text())
    check_self_contained(shown)
    check_accessible(shown)
    assert "worker 1" in run.report_path.read_text()
    assert 'href="#profile"' in run.report_path.read_text()
    assert "56%" in document_markdown(report_document([run.root]))
    without = write_run(tmp_path / "without", complete_records(60))
    assert "#profile" not in write_report(without).read_text()


def test_several_runs_have_a_bar_each(tmp_path: Path) -> None:
    paths = [profiled_run(tmp_path / name, name).root for name in ("a", "b")]
    paths.append(write_run(tmp_path / "c", complete_records(60), config=config_values(name="c")).root)
    (section,) = (one for one in report_document(paths).sections if one.id == "profile")
    assert [chart.value for chart in section.charts] == ["160 ms a step"]


def test_a_damaged_profile_is_named_and_an_empty_one_is_none(tmp_path: Path) -> None:
    run = profiled_run(tmp_path / "run", "one")
    (run.root / "profile" / "breakdown.json").write_text("{")
    with pytest.raises(DataError, match=r"breakdown\.json is damaged"):
        read_profile(run)
    (run.root / "profile" / "breakdown.json").write_text(json.dumps({"forward_s": None, "of_workers": 3}))
    assert read_profile(run) is None
