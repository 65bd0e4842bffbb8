"""metrics.jsonl survives kills, and a tracker that raises, blocks or cannot start never stops or slows a run."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from genrec.training import tracking
from genrec.training.tracking import Sender, Tracker, start_tracker


class RemoteRun:
    """Stands for `wandb.Run`: remembers what it is sent, or fails, or never returns."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.called = threading.Event()
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.finished = False
        self.url: str | None = None

    def log(self, values: dict[str, float], step: int | None) -> None:
        self.called.set()
        if self.fails == "log":
            raise ConnectionError("the service is gone")
        if self.fails == "for ever":
            threading.Event().wait()
        self.lines.append((step, values))

    def finish(self) -> None:
        if self.fails == "finish":
            raise ConnectionError("the service is gone")
        self.finished = True


@pytest.fixture
def warnings_said(monkeypatch) -> list[str]:
    """The module's warnings, whatever other libraries have done to the logging of this process."""
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("genrec.training.tracking.logger", logger)
    return said


def steps_in(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_appended(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        tracker = Tracker(path)
        tracker.log({"kind": "train", "step": step})
        tracker.close()
    assert steps_in(path) == [1, 2]


def test_a_line_that_a_kill_has_cut_is_removed_before_the_next(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    tracker = Tracker(path)
    tracker.log({"kind": "train", "step": 2})
    tracker.close()
    assert steps_in(path) == [1, 2]


def test_every_line_is_sent_in_order_and_the_run_is_finished(tmp_path, warnings_said) -> None:
    run = RemoteRun()
    tracker = Tracker(tmp_path / "metrics.jsonl", Sender(lambda: run, "id"))
    for step in range(5):
        tracker.log({"kind": "train", "step": step, "loss": 0.5, "metrics": {"hr@10": 0.25}})
    tracker.close()
    assert run.lines == [(step, {"train/hr@10": 0.25, "train/loss": 0.5}) for step in range(5)]
    assert run.finished
    assert warnings_said == []


def test_a_late_line_has_its_step_as_a_value(tmp_path, warnings_said) -> None:
    """Weights & Biases drops what is logged for a step before its newest."""
    run = RemoteRun()
    tracker = Tracker(tmp_path / "metrics.jsonl", Sender(lambda: run, "id"))
    tracker.log({"kind": "train", "step": 30, "loss": 0.5})
    tracker.log({"kind": "validation", "step": 20, "background": True, "metrics": {"hr@10": 0.25}})
    tracker.close()
    late = {"validation/hr@10": 0.25, "validation/step": 20, "validation/background": True}
    assert run.lines == [(30, {"train/loss": 0.5}), (None, late)]
    assert steps_in(tmp_path / "metrics.jsonl") == [30, 20]


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_raises_is_switched_off_and_the_lines_go_on(tmp_path, warnings_said, fails: str) -> None:
    tracker = Tracker(tmp_path / "metrics.jsonl", Sender(lambda: RemoteRun(fails), "id"))
    for step in (1, 2, 3):
        tracker.log({"kind": "train", "step": step})
    tracker.close()
    assert len(warnings_said) == 1
    assert "the service is gone" in warnings_said[0]
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]


def test_a_tracker_that_blocks_for_ever_slows_nothing(tmp_path, warnings_said, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "MAX_WAITING_RECORDS", 10)
    run = RemoteRun("for ever")
    tracker = Tracker(tmp_path / "metrics.jsonl", Sender(lambda: run, "id"))
    started_at = time.perf_counter()
    tracker.log({"kind": "train", "step": 0})
    assert run.called.wait(timeout=5)  # from here on the thread takes nothing from the queue
    for step in range(1, 100):
        tracker.log({"kind": "train", "step": step})
    tracker.close()  # the queue is full, so there is nothing to wait for
    assert time.perf_counter() - started_at < 5
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(100))
    assert ["behind" in warnings_said[0], "did not finish" in warnings_said[1]] == [True, True]
    assert len(warnings_said) == 2


def test_the_end_of_a_run_waits_for_a_blocked_tracker_no_longer_than_it_may(tmp_path, warnings_said) -> None:
    assert tracking.CLOSE_TIMEOUT_S <= 10
    sender = Sender(lambda: RemoteRun("for ever"), "id")
    sender.send({"kind": "train", "step": 1})
    started_at = time.perf_counter()
    sender.close(timeout_s=0.1)
    assert time.perf_counter() - started_at < 5
    assert "did not finish" in warnings_said[0]


@pytest.mark.parametrize("mode", ["raises", "blocks", "works"])
def test_wandb_starts_in_the_background_and_offline_without_a_key(
    tmp_path, write_prepared, make_config, monkeypatch, warnings_said, mode: str
) -> None:
    asked: dict[str, object] = {}
    run = RemoteRun()

    def init(**arguments: object) -> RemoteRun:
        if mode == "raises":
            raise RuntimeError("no such account")
        if mode == "blocks":
            threading.Event().wait()
        asked.update(arguments)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), "tracking.wandb=true")
    tracker = start_tracker(config, tmp_path / "metrics.jsonl", resume_id="earlier")
    assert tracker.id == "earlier"
    tracker.log({"kind": "train", "step": 1})
    assert steps_in(tmp_path / "metrics.jsonl") == [1]
    if mode == "blocks":  # how long the end waits is tested above
        monkeypatch.setattr(Sender, "close", lambda _: None)
    tracker.close()
    if mode == "blocks":
        return
    if mode == "raises":
        assert "no such account" in warnings_said[0]
    else:
        assert (asked["mode"], asked["id"]) == ("offline", "earlier")
        assert run.finished


def test_a_new_run_gets_an_id_of_its_own(tmp_path, write_prepared, make_config, monkeypatch, warnings_said) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: RemoteRun()))
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), "tracking.wandb=true")
    ids = set()
    for number in range(2):
        tracker = start_tracker(config, tmp_path / f"{number}.jsonl", resume_id=None)
        ids.add(tracker.id)
        tracker.close()
    assert len(ids) == 2
    assert None not in ids
