"""One at a time, and no file is left."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genrec import file_lock
from genrec.errors import RunError
from genrec.file_lock import locked


def test_one_at_a_time_although_each_removes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of two openings of a file exclude each other in one process too."""
    monkeypatch.setattr(file_lock, "_POLL_S", 0.0)
    path = tmp_path / "folder" / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            with locked(path, "counting"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.remove(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert (len(most), max(most)) == (180, 1)
    assert list(path.parent.iterdir()) == []


def test_an_error_inside_leaves_no_file_and_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "lock", "failing"):
        raise ValueError("inside")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "lock", "going on"):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from genrec.file_lock import locked\n"
        "with locked(Path(sys.argv[1]), 'dying'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "lock")], env=os.environ, timeout=60)
    assert done.returncode < 0 and (tmp_path / "lock").is_file()
    with locked(tmp_path / "lock", "going on"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_held_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "_TIMEOUT_S", 0.0)
    path = tmp_path / "lock"
    with locked(path, "holding"):
        with pytest.raises(RunError, match="has been waiting for more than 0 minutes"), locked(path, "waiting"):
            pass
        assert path.is_file()
