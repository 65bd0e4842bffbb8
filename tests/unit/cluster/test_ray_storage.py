"""What is told to Ray Train about uploads and about a storage that fails; no Ray is started."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
from pyarrow import fs
from storage_that_fails import FailingFiles

from genrec.cluster import ray_train
from genrec.cluster.mistakes import FAILURE_FILE, STORAGE_FILE, record_mistake
from genrec.cluster.ray_train import Job, _DatasetFactory
from genrec.cluster.ray_upload import publish
from genrec.errors import RewindError, RunError, StorageError


@pytest.fixture
def reported(tmp_path: Path, monkeypatch) -> dict:
    """What `ray.train.report` was called with."""
    calls: dict = {}
    storage = SimpleNamespace(
        storage_filesystem=fs.LocalFileSystem(), build_checkpoint_path_from_name=lambda name: f"{tmp_path}/store/{name}"
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: storage))
    monkeypatch.setattr(ray.train, "report", lambda metrics, **options: calls.update(options))
    return calls


def test_the_upload_is_left_to_ray_and_done_when_it_has_run(reported, tmp_path: Path) -> None:
    mistakes, uploads = [], []
    done = publish(mistakes.append, tmp_path, "step_00000010", lambda: uploads.append("now"), True)
    assert reported["validation"] is True
    assert reported["checkpoint_upload_mode"] == ray.train.CheckpointUploadMode.ASYNC
    assert reported["delete_local_checkpoint_after_upload"] is True
    assert uploads == []
    assert not done.done()
    stored = reported["checkpoint_upload_fn"](reported["checkpoint"], "step_00000010")
    assert stored.path == f"{tmp_path}/store/step_00000010"
    assert (uploads, mistakes, done.result(0)) == (["now"], [], None)


def test_a_failed_upload_is_raised_to_ray_which_may_try_again(reported, tmp_path: Path) -> None:
    mistakes: list[Exception] = []
    answers: list[Exception | None] = [StorageError("AWS Error SLOW_DOWN"), None]

    def upload() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    done = publish(mistakes.append, tmp_path, "step_00000010", upload, False)
    with pytest.raises(StorageError):
        reported["checkpoint_upload_fn"](reported["checkpoint"], "step_00000010")
    assert not done.done()
    reported["checkpoint_upload_fn"](reported["checkpoint"], "step_00000010")
    assert done.result(0) is None
    assert len(mistakes) == 1


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (RunError("no"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (OSError("other"), False),
        (StorageError("later"), False),
        (RewindError("back"), False),
        (ValueError("bug"), False),
    ],
)
def test_only_what_a_restart_cannot_mend_is_written_down(tmp_path: Path, error: Exception, is_kept: bool) -> None:
    record_mistake(tmp_path / FAILURE_FILE, error)
    assert (tmp_path / FAILURE_FILE).exists() is is_kept


@pytest.mark.parametrize("kind", ["out of reach", "damaged"])
def test_the_controller_leaves_a_storage_that_fails_to_the_workers(
    tmp_path: Path, write_prepared, make_config, monkeypatch, kind: str
) -> None:
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), f"runs_dir={tmp_path / 'runs'}")
    job = Job(config.model_dump(mode="json"), str(tmp_path / "runs" / "unit"), 10, 0.0)
    broken = job.run.checkpoints_path / "step_00000010"
    broken.mkdir(parents=True)
    (broken / "finished").touch()
    files = FailingFiles("get_file_info_selector" if kind == "out of reach" else None)
    monkeypatch.setattr(ray_train, "store_of", lambda *_: files.store(str(job.run.checkpoints_path)))
    monkeypatch.setattr(
        "genrec.data.ray_stream.remaining_chunks", lambda _, start_step, end_step: (start_step, end_step)
    )
    assert _DatasetFactory(job)() == (10, 10)  # nothing to train: the workers end at once
    written = {path.name for path in job.run.root.glob("*.json")}
    assert written == {STORAGE_FILE if kind == "out of reach" else FAILURE_FILE}
    if kind == "out of reach":
        assert "no route to host" in json.loads((job.run.root / STORAGE_FILE).read_text())["message"]
        monkeypatch.setattr(ray.train, "get_context", lambda: None)
        with pytest.raises(StorageError, match="no route to host"):
            ray_train._worker({"job": job})
        files.fails = False
        monkeypatch.setattr(ray_train, "resume_point", lambda _: None)
        assert _DatasetFactory(job)() == (0, 10)
        assert not (job.run.root / STORAGE_FILE).exists()
