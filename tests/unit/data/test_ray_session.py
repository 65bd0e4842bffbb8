"""Ray for the process: tasks in order, mistakes without stacks, and a cluster that is not there."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.data.ray_session import ensure_ray, map_tasks
from genrec.errors import DataError, RunError


def _square() -> Callable[[int], int]:
    """A function that is pickled by value: a worker cannot import this file."""

    def square(number: int) -> int:
        if number == 13:
            raise DataError("13 brings bad luck; leave it out.")
        if number == 14:
            raise OSError(28, "No space left on device", "shard.parquet")
        if number == 15:
            raise ZeroDivisionError
        return number**2

    return square


def test_results_come_in_order() -> None:
    ensure_ray()
    ensure_ray()
    assert list(map_tasks(_square(), range(12))) == [number**2 for number in range(12)]


def test_a_mistake_of_the_user_arrives_as_it_was_raised() -> None:
    ensure_ray()
    with pytest.raises(DataError, match=r"^13 brings bad luck; leave it out\.$") as caught:
        list(map_tasks(_square(), [1, 13, 2]))
    assert caught.value.__cause__ is None
    with pytest.raises(DataError, match=r"No space left on device.*free some disk space"):
        list(map_tasks(_square(), [14]))


def test_tasks_beside_a_mistake_have_ended_when_it_arrives(tmp_path: Path) -> None:
    def write_late(number: int) -> None:
        if number == 0:
            raise DataError("0 is nothing; leave it out.")
        time.sleep(1)
        (tmp_path / "late").touch()

    ensure_ray()
    with pytest.raises(DataError, match="0 is nothing"):
        list(map_tasks(write_late, [0, 1]))
    assert (tmp_path / "late").exists(), "else it would be written while the folder is cleaned up"


def test_a_mistake_of_ours_is_not_hidden() -> None:
    ensure_ray()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        list(map_tasks(_square(), [15]))


def test_a_cluster_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        program = "from genrec.data.ray_session import ensure_ray; ensure_ray()"
        environment = os.environ | {"RAY_ADDRESS": address}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
        )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"genrec.errors.RunError: There is no Ray cluster at RAY_ADDRESS={address}"), done.stderr
    assert last.endswith("start it, or unset RAY_ADDRESS.")


@pytest.mark.timeout(300)
def test_sigterm_ends_a_command_that_waits_for_ray_with_a_sentence() -> None:
    program = (
        "import os, signal, threading; from genrec.data.ray_session import ensure_ray; ensure_ray(); import ray\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "ray.get(ray.remote(num_cpus=0)(lambda: __import__('time').sleep(600)).remote())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, env=environment)
    assert done.stderr == "Ended by SIGTERM; the same command goes on from the last checkpoint.\n"
    assert done.returncode in (143, 1), "a failure, and no abort of Ray's"


class SlowNode:
    """Stands for Ray's node: appears in time at the `good` attempt, and counts what was ended."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.num_started = 0
        self.num_ended = 0

    def start(self, **options: object) -> None:
        self.num_started += 1
        if self.num_started != self.good:
            raise Exception("The current node timed out during startup. This could happen because ...")

    def kill_all_processes(self, *, check_alive: bool, allow_graceful: bool) -> None:
        self.num_ended += 1


@pytest.mark.parametrize("good", [1, 3, 4])
def test_a_busy_machine_gets_three_chances(monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    node = SlowNode(good)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", node.start)
    if good <= 3:
        ensure_ray()
    else:
        with pytest.raises(RunError, match=r"did not start in 30 s, 3 times"):
            ensure_ray()
    assert (node.num_started, node.num_ended) == (min(good, 3), min(good - 1, 3))
