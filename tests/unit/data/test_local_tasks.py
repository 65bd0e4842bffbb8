"""Tasks in processes of this machine: in order, mistakes without traces, and processes that end."""

import os
import signal
import subprocess
import sys
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
        # On a busy machine one process may do all of the first tasks before another has started.
        seen = set(run(_process_id, range(50))) | set(run(_process_id, range(50)))
        assert os.getpid() not in seen
        assert len(seen) <= num_processes()
        assert list(run(abs, [])) == []
    assert not any(_is_running(pid) for pid in seen)


def test_mistakes_of_the_user_and_of_ours() -> None:
    with open_tasks() as run:
        with pytest.raises(DataError, match=r"cannot be written or read: .*'missing'; free some disk space") as caught:
            list(run(os.stat, ["missing"] * 10))
        assert caught.value.__cause__ is None
        with pytest.raises(ValueError, match="invalid literal"):
            list(run(int, ["1", "two"]))
        assert list(run(int, ["1", "2"])) == [1, 2]


def test_a_killed_process_is_noticed() -> None:
    with open_tasks() as run, pytest.raises(RunError, match="was killed, perhaps because memory ran out"):
        list(run(signal.raise_signal, [signal.SIGKILL] * 3))


def test_leaving_early_drops_what_has_not_begun() -> None:
    started = time.monotonic()
    with open_tasks() as run:
        answers = run(time.sleep, [0] + [0.2] * 1_000)
        assert next(answers) is None
        answers.close()
    assert time.monotonic() - started < 60


def test_processes_end_with_a_parent_that_is_killed() -> None:
    code = (
        "from genrec.data.local_tasks import open_tasks\n"
        "import time, os\n"
        "if __name__ == '__main__':\n"
        "    with open_tasks() as run:\n"
        "        print(*run(os.getpgid, [0]), flush=True)\n"
        "        list(run(time.sleep, [1_000] * 4))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        parent.kill()
        parent.wait(30)
        deadline = time.monotonic() + 60
        while _has_members(group) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _has_members(group)


def _process_id(_: int) -> int:
    return os.getpid()


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
