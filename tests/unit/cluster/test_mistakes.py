"""A worker's mistake reaches the driver, also when the disk has no room for a new file."""

import errno
from pathlib import Path

import pytest

from genrec.cluster import mistakes
from genrec.cluster.mistakes import FAILURE_FILE, RESERVE_FILE, RESERVED_BYTES, expect_mistakes, message_of, record
from genrec.errors import RunError
from genrec.run_dir import RunDir


def no_room(path: Path, text: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("message", ["The disk is full; free some space.", "ä" * 10_000, '"\\\n' * 3_000])
def test_a_full_disk_is_told_in_the_room_that_was_kept(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_mistakes(RunDir(tmp_path))
    kept = (tmp_path / RESERVE_FILE).stat()
    monkeypatch.setattr(mistakes, "write_atomically", no_room)
    record(tmp_path / FAILURE_FILE, RunError(message))
    told = message_of(tmp_path / FAILURE_FILE)
    assert told and message.startswith(told)
    assert len(told) == len(message) or len(told) > 300
    after = (tmp_path / FAILURE_FILE).stat()
    assert (after.st_ino, after.st_size) == (kept.st_ino, RESERVED_BYTES)  # the same file, no byte longer
    record(tmp_path / FAILURE_FILE, RunError("of another worker"))  # finds no room any more, and does not fail
    assert message_of(tmp_path / FAILURE_FILE) == told


def test_a_new_start_forgets(tmp_path: Path) -> None:
    expect_mistakes(RunDir(tmp_path))
    record(tmp_path / FAILURE_FILE, RunError("no"))
    assert message_of(tmp_path / FAILURE_FILE) == "no"
    expect_mistakes(RunDir(tmp_path))
    assert not (tmp_path / FAILURE_FILE).exists()
    assert (tmp_path / RESERVE_FILE).stat().st_size == RESERVED_BYTES
