import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos_machine import MARK, Network, Volume, kill_marked, marked_processes, remove_leftovers

WAIT_FOR_EVER = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
def dead_owner() -> int:
    """The process id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    return process.pid


@pytest.fixture
def marked(dead_owner: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process at `node-1` of a harness that is gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT_FOR_EVER],
        env={**os.environ, MARK: f"{dead_owner}:node-1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()  # its environment can be read from now on
        yield process
    process.kill()
    process.wait(30)


def test_processes_are_killed_by_place(marked: subprocess.Popen[bytes], dead_owner: int) -> None:
    assert kill_marked(dead_owner, "node-2") == 0
    assert marked.poll() is None
    assert [process.pid for _, process in marked_processes(dead_owner)] == [marked.pid]
    assert kill_marked(dead_owner, "node-1") == 1
    assert marked.wait(30) < 0


def test_what_a_killed_harness_has_left_is_removed(marked: subprocess.Popen[bytes]) -> None:
    remove_leftovers()
    assert marked.wait(30) < 0


def test_who_may_not_make_them_gets_neither_disk_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    network, volume = Network(os.getpid(), 3), Volume(os.getpid(), tmp_path / "volume", 2**20)
    assert network.missing == volume.missing == "this user is not root"
    assert (network.address(2), network.inside(2)) == ("127.0.0.1", [])
    assert volume.folder.is_dir()
    network.remove()
    volume.remove()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(os.getpid(), tmp_path / "volume", 4 * 2**20)
    if made.missing:
        pytest.skip(f"a small disk cannot be mounted: {made.missing}")
    yield made
    made.remove()


def test_a_full_disk_takes_nothing_until_it_is_emptied(volume: Volume) -> None:
    assert volume.fill() > 3 * 2**20
    with pytest.raises(OSError) as raised:
        (volume.folder / "more").write_bytes(b"x" * 2**16)
    assert raised.value.errno == errno.ENOSPC
    volume.empty()
    (volume.folder / "more").write_bytes(b"x" * 2**16)


def test_a_folder_refuses_writes_while_a_log_beside_it_goes_on(volume: Volume) -> None:
    folder = volume.folder / "checkpoints"
    folder.mkdir()
    with (volume.folder / "log").open("w") as log:
        volume.refuse_writes(folder)
        with pytest.raises(OSError) as raised:
            (folder / "shard").write_bytes(b"x")
        assert raised.value.errno == errno.EROFS
        assert log.write("still here")
    volume.allow_writes(folder)
    (folder / "shard").write_bytes(b"x")
