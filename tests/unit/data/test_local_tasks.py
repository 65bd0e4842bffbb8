"""Tasks in processes of this machine: in order, mistakes without traces, and processes that end."""

import os
import signal
import time
from pathlib import Path

import pytest

from genrec.data.local_tasks import num_processes, open_tasks
from genrec.errors import DataError, RunError


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.data.local_tasks.has_ray", lambda: False)


def test_results_come_in_order_and_processes_stay() -> None:
    with open_tasks() as run:
        assert list(run(abs, range(-20, 20))) == [abs(number) for number in range(-20, 20)]
        # Each process leads a group of its own, so the group's number is the process's.
        first = set(run(os.getpgid, [0] * 50))
        assert set(run(os.getpgid, [0] * 50)) <= first and os.getpid() not in first
        assert len(first) <= num_processes()
        assert list(run(abs, [])) == []
    assert not any(_is_running(pid) for pid in first)


def test_mistakes_of_the_user_and_of_ours() -> None:
    with open_tasks() as run:
        with pytest.raises(DataError, match=r"cannot be written or read: .*'missing'; free some disk space") as caught:
            list(run(os.stat, ["missing"] * 10))
        assert caught.value.__cause__ is None
        with pytest.raises(RuntimeError, match=r"A task failed:(.|\n)*ValueError"):
            list(run(int, ["1", "two"]))
        assert list(run(int, ["1", "2"])) == [1, 2]


def test_a_killed_process_is_noticed() -> None:
    with open_tasks() as run, pytest.raises(RunError, match="was killed, perhaps because memory ran out"):
        list(run(signal.raise_signal, [signal.SIGKILL] * 3))


def test_leaving_early_does_not_wait(tmp_path: Path) -> None:
    started = time.monotonic()
    with open_tasks() as run:
        answers = run(time.sleep, [0] + [1_000] * 5)
        assert next(answers) is None
        answers.close()
    assert time.monotonic() - started < 60


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
