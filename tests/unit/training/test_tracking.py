"""metrics.jsonl survives kills, and a tracker can never stop a run."""

import json
import sys
from types import SimpleNamespace

import pytest

from genrec.training.tracking import Tracker, start_tracker


class BrokenRun:
    id = "abc"

    def log(self, *_: object, **__: object) -> None:
        raise ConnectionError("the service is gone")

    def finish(self) -> None:
        raise ConnectionError("the service is gone")


@pytest.fixture
def warnings_said(monkeypatch) -> list[str]:
    """The module's warnings, whatever other libraries have done to the logging of this process."""
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("genrec.training.tracking.logger", logger)
    return said


def test_lines_are_appended(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        tracker = Tracker(path)
        tracker.log({"kind": "train", "step": step})
        tracker.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_line_that_a_kill_has_cut_is_removed_before_the_next(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    tracker = Tracker(path)
    tracker.log({"kind": "train", "step": 2})
    tracker.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_tracker_that_fails_is_switched_off_and_the_lines_go_on(tmp_path, warnings_said) -> None:
    tracker = Tracker(tmp_path / "metrics.jsonl", BrokenRun())
    for step in (1, 2, 3):
        tracker.log({"kind": "train", "step": step})
    tracker.close()
    assert len(warnings_said) == 1
    assert "the service is gone" in warnings_said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("mode", ["raises", "works"])
def test_wandb_starts_offline_without_a_key_and_its_failure_is_a_warning(
    tmp_path, write_prepared, make_config, monkeypatch, warnings_said, mode: str
) -> None:
    asked: dict[str, object] = {}

    def init(**arguments: object) -> BrokenRun:
        if mode == "raises":
            raise RuntimeError("no such account")
        asked.update(arguments)
        return BrokenRun()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), "tracking.wandb=true")
    tracker = start_tracker(config, tmp_path / "metrics.jsonl", resume_id="earlier")
    tracker.log({"kind": "train", "step": 1})
    tracker.close()
    if mode == "raises":
        assert tracker.id is None
        assert "no such account" in warnings_said[0]
    else:
        assert asked["mode"] == "offline"
        assert asked["id"] == "earlier"
