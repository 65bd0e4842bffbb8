"""Folders on storage: what is pushed is pulled, whole and unchanged, and nobody's news are lost."""

import json
import threading
from pathlib import Path

import pytest

from genrec.errors import ConfigError, DataError, StorageError
from genrec.run_dir import open_run, run_dir_at
from genrec.storage import asking, below, copy_folder, own_folder, uri_of
from genrec.stored_folder import StoredFolder


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    machine(monkeypatch, tmp_path, "first")
    return f"file://{tmp_path}/storage/walk"


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Another machine: copies of its own."""
    monkeypatch.setenv("GENREC_COPIES", str(tmp_path / name))


def write(stored: StoredFolder, name: str, text: str) -> None:
    path = stored.copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def texts(stored: StoredFolder) -> dict[str, str]:
    return {p.relative_to(stored.copy).as_posix(): p.read_text() for p in stored.copy.rglob("*") if p.is_file()}


def test_another_machine_gets_what_was_pushed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = StoredFolder(uri, leave_out=["checkpoints"])
    assert not here.pull() and here.index() is None
    for name, text in {"a.txt": "1", "deep/b.txt": "2", "checkpoints/x": "3", "draft.tmp": "4"}.items():
        write(here, name, text)
    here.push()
    machine(monkeypatch, tmp_path, "second")
    there = StoredFolder(uri)
    assert there.pull()
    assert texts(there) == {"a.txt": "1", "deep/b.txt": "2"}
    write(there, "a.txt", "changed")
    (there.copy / "deep" / "b.txt").unlink()
    there.push()
    machine(monkeypatch, tmp_path, "first")
    again = StoredFolder(uri)
    again.pull()
    assert texts(again)["a.txt"] == "changed" and "deep/b.txt" not in texts(again)
    stored = [p for p in (tmp_path / "storage" / "walk" / "files").rglob("*") if p.is_file()]
    assert len(stored) == 1  # what nobody needs any more is gone


def test_what_was_made_here_and_never_stored_can_be_dropped(uri: str) -> None:
    stored = StoredFolder(uri)
    write(stored, "deep/a.txt", "stored")
    stored.push()
    write(stored, "deep/b.txt", "left by an append that was killed")
    assert stored.pull() and "deep/b.txt" in texts(stored)
    stored.drop_unstored()
    assert texts(stored) == {"deep/a.txt": "stored"}


def test_a_copy_that_was_damaged_is_replaced_and_a_damaged_store_is_refused(uri: str, tmp_path: Path) -> None:
    stored = StoredFolder(uri)
    write(stored, "a.txt", "right")
    stored.push()
    write(stored, "a.txt", "wrong")
    stored.pull()
    assert texts(stored) == {"a.txt": "right"}
    (kept,) = (p for p in (tmp_path / "storage" / "walk" / "files").rglob("*") if p.is_file())
    kept.write_text("wrong")
    (stored.copy / "a.txt").unlink()
    with pytest.raises(DataError, match=r"walk: a\.txt is damaged"):
        stored.pull()
    assert not (stored.copy / "a.txt").exists()
    kept.unlink()
    with pytest.raises(StorageError, match="lacks a file that its index names"):
        stored.pull()


def test_what_two_machines_change_in_a_run_is_kept_of_both(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = StoredFolder(uri, changes=True)
    write(trains, "metrics.jsonl", "1\n")
    write(trains, "config.yaml", "c")
    trains.push()
    machine(monkeypatch, tmp_path, "second")
    evaluates = StoredFolder(uri, changes=True)
    evaluates.pull()
    write(trains, "metrics.jsonl", "1\n2\n")
    machine(monkeypatch, tmp_path, "first")
    trains.push()
    machine(monkeypatch, tmp_path, "second")
    write(evaluates, "evaluation.json", "{}")
    (evaluates.copy / "config.yaml").unlink()  # by a cleaner of temporary files
    evaluates.push()
    machine(monkeypatch, tmp_path, "third")
    looks = StoredFolder(uri, changes=True)
    looks.pull()
    assert texts(looks) == {"metrics.jsonl": "1\n2\n", "config.yaml": "c", "evaluation.json": "{}"}


def test_looking_at_a_run_does_not_undo_what_it_writes(uri: str) -> None:
    stored = StoredFolder(uri, changes=True)
    write(stored, "metrics.jsonl", "1\n")
    stored.push()
    write(stored, "metrics.jsonl", "1\n2\n")
    stored.pull()
    assert texts(stored) == {"metrics.jsonl": "1\n2\n"}


def test_a_log_that_grows_meanwhile_is_stored_as_it_was(uri: str, tmp_path: Path) -> None:
    stored = StoredFolder(uri, changes=True)
    write(stored, "metrics.jsonl", "")
    ended = threading.Event()

    def grow() -> None:
        with (stored.copy / "metrics.jsonl").open("a") as file:
            while not ended.wait(0.0005):
                file.write('{"kind": "train"}\n')
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(20):
            stored.push()
    finally:
        ended.set()
        thread.join()
    told = (stored.index() or {})["metrics.jsonl"]
    kept = tmp_path / "storage" / "walk" / "files" / "metrics.jsonl" / told["sha256"]
    assert kept.stat().st_size == told["num_bytes"] > 0


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a//b", ""])
def test_an_index_cannot_name_a_file_outside_of_its_folder(uri: str, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "storage" / "walk"
    folder.mkdir(parents=True)
    told = {"num_bytes": 1, "sha256": "0" * 64}
    (folder / "index.json").write_text(json.dumps({"files": {name: told}}))
    with pytest.raises(DataError, match="outside of its folder"):
        StoredFolder(uri).pull()


def test_a_digest_cannot_name_a_file_outside_of_its_folder(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "walk"
    folder.mkdir(parents=True)
    told = {"num_bytes": 1, "sha256": "../../secret"}
    (folder / "index.json").write_text(json.dumps({"files": {"a": told}}))
    with pytest.raises(DataError, match="damaged"):
        StoredFolder(uri).pull()


def test_a_place_is_a_path_or_a_uri() -> None:
    assert uri_of("runs/walk") is None and uri_of(Path("/runs")) is None
    assert uri_of("s3://bucket/runs/") == "s3://bucket/runs"
    assert uri_of(Path("s3://bucket/runs")) == "s3://bucket/runs"  # a Path has lost a slash
    assert uri_of(Path("file:///runs")) == "file:///runs"
    assert below("s3://bucket/runs?region=x", "walk") == "s3://bucket/runs/walk?region=x"
    assert copy_folder("s3://a/walk") != copy_folder("s3://b/walk")


@pytest.mark.parametrize("place", ["s3://AKIA:hush@bucket/runs", "s3://bucket/runs?secret_key=hush"])
def test_credentials_in_a_place_are_refused_and_not_shown(place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_run(place)
    assert "hush" not in str(refused.value) and "AWS_PROFILE" in str(refused.value)


def test_a_run_that_is_not_there_is_said(uri: str) -> None:
    assert run_dir_at(uri).place == uri
    with pytest.raises(DataError, match="is not a run directory"):
        open_run(uri)


def test_what_passes_is_tried_again_and_what_does_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.storage.time.sleep", lambda _: None)
    errors = [OSError("broken off"), OSError("broken off")]

    def ask() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    assert asking("storage x", "read", ask) == "answer"
    errors = [OSError("broken off")] * 9
    with pytest.raises(StorageError, match=r"The storage x could not be read \(broken off\)"):
        asking("storage x", "read", ask)
    assert len(errors) == 5  # four attempts
    errors = [PermissionError("denied")] * 9
    with pytest.raises(StorageError):
        asking("storage x", "read", ask)
    assert len(errors) == 8


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    own_folder(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o077 == 0
    (tmp_path / "mine").chmod(0o777)
    with pytest.raises(DataError, match="others may write"):
        own_folder(tmp_path / "mine")
