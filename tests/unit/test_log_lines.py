"""Lines of JSON say which run, worker and step they are about."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from genrec import log_lines
from genrec.log_lines import PLACE, JsonLines, Place, log_worker_to_stderr
from genrec.run_dir import log_to


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The logger of genrec, without the handlers that a test gives it."""
    log = logging.getLogger("genrec")
    before = log.handlers[:], log.propagate, log.level
    for module in ("genrec.log_lines", "genrec.run_dir"):
        monkeypatch.setattr(f"{module}.PLACE", Place())
    monkeypatch.setattr("genrec.run_dir.PLACE", log_lines.PLACE)
    yield log
    for handler in set(log.handlers) - set(before[0]):
        handler.close()
        log.removeHandler(handler)
    log.propagate = before[1]
    log.setLevel(before[2])


def test_lines_of_a_run_are_json(tmp_path: Path, log: logging.Logger) -> None:
    path = tmp_path / "walk" / "log.txt"
    path.parent.mkdir()
    log_to(path, "json")
    log_lines.PLACE.rank, log_lines.PLACE.step = 1, 40
    logging.getLogger("genrec.training.hooks").warning("waited %.1f s\nfor an upload", 2.0)
    try:
        raise ValueError("no number")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, path.read_text().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "WARNING",
        "logger": "genrec.training.hooks",
        "message": "waited 2.0 s\nfor an upload",
        "run": "walk",
        "rank": 1,
        "step": 40,
    }
    assert "ValueError: no number" in second["exception"]


def test_lines_are_text_by_default(tmp_path: Path, log: logging.Logger) -> None:
    log_to(tmp_path / "log.txt").warning("plain")
    assert (tmp_path / "log.txt").read_text().endswith(" WARNING genrec: plain\n")


def test_a_worker_of_ray_logs_json_once(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log_worker_to_stderr("text")
    assert not any(isinstance(handler.formatter, JsonLines) for handler in log.handlers)
    log_worker_to_stderr("json")
    log_worker_to_stderr("json")  # a restart in the same process
    log.info("here")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "here"
    assert PLACE is not log_lines.PLACE  # the process's own place is left alone by this test
