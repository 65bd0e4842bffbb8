"""A process that stands still writes its stacks and ends, whatever it stands still in; one that moves is left alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrec.config import FaultsConfig
from genrec.run_dir import RunDir
from genrec.training.watchdog import EXIT_CODE, Watchdog

STUCK = """
import ctypes, sys, threading, time
from pathlib import Path
from genrec.config import FaultsConfig
from genrec.run_dir import RunDir
from genrec.training.watchdog import Watchdog

def stands_still_here(how):
    if how == "waits":
        threading.Event().wait(60)
    elif how == "keeps the lock":
        ctypes.PyDLL(None).sleep(60)  # a call into C that does not give Python's lock back

watchdog = Watchdog(RunDir(Path(sys.argv[1])), 3, FaultsConfig(step_timeout_s=0.4, pause_timeout_s=float(sys.argv[3])))
with watchdog.running():
    for number in watchdog.watch(iter(range(3))):
        time.sleep(0.2)
        if number == 2:
            stands_still_here(sys.argv[2])
print("went on")
"""


def run_stuck(folder: Path, how: str, pause_timeout_s: float = 30) -> tuple[int, str]:
    command = [sys.executable, "-c", STUCK, str(folder), how, str(pause_timeout_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert "went on" not in done.stdout
    return done.returncode, (folder / "stacks" / "rank_00003.txt").read_text()


def test_a_wait_without_end_is_written_down_and_ended(tmp_path) -> None:
    code, stacks = run_stuck(tmp_path, "waits")
    assert code == EXIT_CODE
    assert "worker 3" in stacks
    assert "nothing has moved for 0.4 s" in stacks
    assert "in stands_still_here" in stacks


def test_a_call_that_keeps_the_lock_of_python_is_ended_too(tmp_path) -> None:
    code, stacks = run_stuck(tmp_path, "keeps the lock")
    assert code != 0
    assert "in stands_still_here" in stacks


def test_stacks_of_an_earlier_hang_stay(tmp_path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank_00003.txt").write_text("earlier\n")
    assert run_stuck(tmp_path, "waits")[1].startswith("earlier\n")


def test_a_worker_that_moves_is_left_alone_and_leaves_no_file(tmp_path) -> None:
    watchdog = Watchdog(RunDir(tmp_path), 0, FaultsConfig(step_timeout_s=2, pause_timeout_s=30))
    with watchdog.running():
        for _ in watchdog.watch(iter(range(5))):
            time.sleep(0.5)  # slower than the limit together, and not one by one
    assert list((tmp_path / "stacks").iterdir()) == []


def test_a_pause_has_a_limit_of_its_own(tmp_path) -> None:
    class Slow:
        def after_step(self, *_: object) -> None:
            time.sleep(1.5)

    watchdog = Watchdog(RunDir(tmp_path), 0, FaultsConfig(step_timeout_s=0.8, pause_timeout_s=30))
    with watchdog.running():
        watchdog.beat()
        watchdog.pausing(Slow()).after_step(None, None)
    assert list((tmp_path / "stacks").iterdir()) == []


def test_without_a_limit_nothing_is_watched(tmp_path) -> None:
    watchdog = Watchdog(RunDir(tmp_path), 0, FaultsConfig(step_timeout_s=None))
    with watchdog.running():
        assert list(watchdog.watch(iter(range(3)))) == [0, 1, 2]
    assert not (tmp_path / "stacks").exists()


def test_an_error_in_training_comes_through(tmp_path) -> None:
    watchdog = Watchdog(RunDir(tmp_path), 0, FaultsConfig(step_timeout_s=5))
    with pytest.raises(ValueError, match="from training"), watchdog.running():
        raise ValueError("from training")
    assert list((tmp_path / "stacks").iterdir()) == []
