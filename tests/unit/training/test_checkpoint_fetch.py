"""A checkpoint on this machine: in place where it is a folder, else downloaded once and compared."""

import errno
import json
import tempfile
import threading
from pathlib import Path

import pytest
from storage_that_fails import FailingFiles

from genrec.errors import RunError, StorageError
from genrec.training.checkpoint import CheckpointInfo, info_in, resume_point, upload_checkpoint, write_checkpoint
from genrec.training.checkpoint_fetch import UnusableCheckpointError, by_fetching, fetch, fetched, forget
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name
from genrec.training.state import TrainState

NAME = checkpoint_name(10)


class FileEngine:
    def save(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "shard").write_bytes(b"weights")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two checkpoints of one worker."""
    for step in (10, 20):
        draft = tmp_path / f"draft-{step}"
        draft.mkdir()
        write_checkpoint(draft, FileEngine(), CheckpointInfo(step, TrainState(step), "hash", 1, {}, {}), 0)
        upload_checkpoint(CheckpointStore(tmp_path / "store"), draft, checkpoint_name(step), 0)
    return tmp_path / "store"


def copies(temporary: Path) -> list[Path]:
    return [path for path in temporary.rglob("*") if path.is_dir()]


def test_a_folder_is_used_in_place(folder: Path, temporary: Path) -> None:
    store = CheckpointStore(folder)
    assert fetch(store, NAME) == folder / NAME
    with fetched(store, NAME) as found:
        assert found == folder / NAME
    forget(store)
    assert (folder / NAME / "state.json").exists()
    assert copies(temporary) == []


def test_a_uri_is_downloaded_once_for_all_workers_and_forgotten(folder: Path, temporary: Path) -> None:
    files = FailingFiles()
    store = files.store(str(folder))
    (folder / NAME / "left-by-another-topology").write_bytes(b"old")
    found = fetch(store, NAME)
    assert temporary in found.parents
    assert (found / "engine" / "shard").read_bytes() == b"weights"
    assert info_in(found).step == 10
    assert json.loads((found / "rank_00000.json").read_text()).keys() == {"engine/shard", "state.json"}
    assert not (found / "left-by-another-topology").exists()
    (folder / NAME / "engine" / "shard").write_bytes(b"weightz")  # would be seen by a second download
    assert fetch(store, NAME) == found
    forget(store)
    forget(store)
    assert copies(temporary) == []


def test_a_file_uri_counts_as_a_storage(folder: Path, temporary: Path) -> None:
    found = fetch(CheckpointStore(folder.as_uri()), NAME)
    assert found != folder / NAME
    assert (found / "engine" / "shard").read_bytes() == b"weights"


def test_workers_of_a_machine_wait_for_the_one_that_downloads(folder: Path) -> None:
    store = CheckpointStore(folder.as_uri())
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(store, NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert (found[0] / "engine" / "shard").read_bytes() == b"weights"


def test_what_a_killed_process_left_is_not_used(folder: Path) -> None:
    store = CheckpointStore(folder.as_uri())
    found = fetch(store, NAME)
    (found / "fetched").unlink()  # killed in the middle
    (found / "engine" / "shard").write_bytes(b"wei")
    old = found.with_name("step_00000001-old")
    old.mkdir()
    assert (fetch(store, NAME) / "engine" / "shard").read_bytes() == b"weights"
    assert not old.exists()


@pytest.mark.parametrize("content", [b"weightz", b"wei"])
def test_a_damaged_file_is_refused_and_nothing_is_left(folder: Path, temporary: Path, content: bytes) -> None:
    (folder / NAME / "engine" / "shard").write_bytes(content)
    for store in (CheckpointStore(folder.as_uri()), CheckpointStore(folder)):
        with pytest.raises(UnusableCheckpointError, match=r"engine/shard .*choose another"), fetched(store, NAME):
            pass
    store = CheckpointStore(folder.as_uri())
    with pytest.raises(UnusableCheckpointError):
        fetch(store, NAME)
    assert by_fetching(store, NAME) is not None
    assert list(temporary.rglob("shard")) == []


def test_the_one_before_a_damaged_one_is_fetched(folder: Path) -> None:
    (folder / checkpoint_name(20) / "engine" / "shard").write_bytes(b"weightz")
    store = CheckpointStore(folder.as_uri())
    warnings: list[str] = []
    assert resume_point(store, by_fetching, warnings.append) == NAME
    assert "step_00000020 is not used: engine/shard does not have the SHA-256" in warnings[0]


def test_a_storage_that_fails_is_not_a_damaged_checkpoint(folder: Path, temporary: Path) -> None:
    store = FailingFiles("open_input_stream", path="shard").store(str(folder))
    for ask in (fetch, by_fetching):
        with pytest.raises(StorageError, match="no route to host"):
            ask(store, NAME)
    assert list(temporary.rglob("state.json")) == []


def test_no_room_for_the_copy_gets_a_sentence(folder: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    store = FailingFiles("open_input_stream", path="shard", error=full).store(str(folder))
    with pytest.raises(RunError, match="No space is left"):
        fetch(store, NAME)
