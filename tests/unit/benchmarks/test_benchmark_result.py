import json
from pathlib import Path

import pytest

from genrec.bench.result import Result, git_commit, installed_versions, read_result, summarize, write_result
from genrec.errors import ConfigError
from script import run_script


def a_result() -> Result:
    return Result(
        "peers", {"rounds": 3}, [{"side": "ours", "events_per_s": 2.0}], {"a": None}, {"torch": "2"}, {}, "abc"
    )


def test_summary_gives_the_median_and_how_far_readings_lie_apart() -> None:
    summary = summarize([10.0, 12.0, 9.0])
    assert summary is not None
    assert (summary.median, summary.minimum, summary.maximum, summary.count) == (10.0, 9.0, 12.0, 3)
    assert summary.spread == pytest.approx(0.3)


def test_no_readings_have_no_summary() -> None:
    assert summarize([]) is None


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "peers.json"
    result = a_result()
    write_result(path, result)
    assert read_result(path) == result


def test_a_result_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_result(path, a_result())
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"schema_version": 2}), "utf-8")
    with pytest.raises(ValueError, match="schema version 2, this reads 1"):
        read_result(path)


def test_commit_is_unknown_outside_a_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"


def test_versions_leave_out_what_is_not_installed() -> None:
    assert set(installed_versions(("torch", "no-such-package-here"))) == {"torch"}


def test_a_script_that_is_refused_ends_with_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConfigError("A beam of width 5 finds at most 5 items; widen it.")

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: A beam of width 5 finds at most 5 items; widen it.\n"
