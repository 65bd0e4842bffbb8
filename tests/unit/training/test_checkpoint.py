"""Which checkpoints count: complete ones, whose files have their sizes and digests."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from storage_that_fails import FailingFiles

from genrec.errors import RunError, StorageError
from genrec.training.checkpoint import (
    CheckpointInfo,
    by_digest,
    by_size,
    config_hash,
    drop_after,
    latest_checkpoint,
    prune_checkpoints,
    read_info,
    resume_point,
    same_topology,
    upload_checkpoint,
    write_checkpoint,
)
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name
from genrec.training.state import TrainState


@pytest.fixture(params=["folder", "uri"])
def store(request, tmp_path: Path) -> CheckpointStore:
    """The same rules hold in place and on a storage."""
    folder = tmp_path / "checkpoints"
    return CheckpointStore(folder if request.param == "folder" else folder.as_uri())


class FileEngine:
    """Writes one file a worker."""

    def __init__(self, rank: int, content: bytes = b"weights") -> None:
        self.rank = rank
        self.content = content

    def save(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / f"shard-{self.rank}").write_bytes(self.content)


class FullDiskEngine:
    def save(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def info_of(step: int, metric: float | None = None) -> CheckpointInfo:
    state = TrainState(step=step, best_metric=0.5, best_step=3, elapsed_s=12.5, metric=metric)
    return CheckpointInfo(step, state, "hash", 2, {"name": "torch", "precision": "fp32"}, {"torch": "2"})


def write(
    store: CheckpointStore, tmp_path: Path, step: int, ranks: tuple[int, ...] = (0, 1), metric: float | None = None
) -> Path:
    """Uploads a checkpoint of two workers, or the parts of some of them; its folder."""
    for rank in ranks:
        upload(store, tmp_path, info_of(step, metric), rank)
    return Path(store.path(checkpoint_name(step)))


def upload(store: CheckpointStore, tmp_path: Path, info: CheckpointInfo, rank: int) -> None:
    draft = tmp_path / f"draft-{info.step}-{rank}"
    draft.mkdir()
    write_checkpoint(draft, FileEngine(rank), info, rank)
    upload_checkpoint(store, draft, checkpoint_name(info.step), rank)


def test_a_complete_checkpoint_counts_and_says_where_the_run_stood(store, tmp_path: Path) -> None:
    path = write(store, tmp_path, 40)
    assert by_digest(store, path.name) is None
    assert read_info(store, path.name) == info_of(40)


def test_the_newest_complete_one_is_used_and_newer_ones_are_named(store, tmp_path: Path) -> None:
    good = write(store, tmp_path, 10)
    write(store, tmp_path, 20, ranks=(0,))  # worker 1 died before its list was written
    cut = write(store, tmp_path, 30)
    (cut / "engine" / "shard-1").write_bytes(b"weig")
    absent = write(store, tmp_path, 40)
    (absent / "engine" / "shard-0").unlink()
    warnings: list[str] = []
    assert latest_checkpoint(store, warn=warnings.append) == good.name
    assert [name for name, text in zip((absent.name, cut.name, "step_00000020"), warnings, strict=True) if name in text]
    assert "engine/shard-0 is missing" in warnings[0]
    assert "has 4 bytes and should have 7" in warnings[1]
    assert "incomplete" in warnings[2]


def test_a_flipped_bit_is_found_by_its_digest(store, tmp_path: Path) -> None:
    path = write(store, tmp_path, 10)
    (path / "engine" / "shard-0").write_bytes(b"weightz")
    assert by_size(store, path.name) is None
    assert "SHA-256" in str(by_digest(store, path.name))


def steps(store: CheckpointStore) -> list[int]:
    return [int(name.removeprefix("step_")) for name in store.names()]


def test_pruning_keeps_the_newest_and_what_may_still_be_written(store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(store, tmp_path, step)
    write(store, tmp_path, 25, ranks=(0,))  # cut, and older than one that counts
    write(store, tmp_path, 40, ranks=(1,))  # another worker may be about to finish it
    prune_checkpoints(store, keep=2)
    assert steps(store) == [20, 30, 40]


def test_pruning_without_one_that_counts_deletes_nothing(store, tmp_path: Path) -> None:
    write(store, tmp_path, 10, ranks=(1,))
    write(store, tmp_path, 20, ranks=(0,))
    prune_checkpoints(store, keep=1)
    assert steps(store) == [10, 20]


def test_the_best_are_kept_besides_the_newest(store, tmp_path: Path) -> None:
    metrics = {10: 0.3, 20: 0.5, 30: None, 40: 0.5, 50: 0.1, 60: 0.2}
    for step, metric in metrics.items():
        write(store, tmp_path, step, metric=metric)
    prune_checkpoints(store, keep=1, keep_best=3)
    assert steps(store) == [10, 20, 40, 60]
    prune_checkpoints(store, keep=1, keep_best=1)
    assert steps(store) == [20, 60]  # of two that are equal, the earlier
    prune_checkpoints(store, keep=1)
    assert steps(store) == [60]


def test_metrics_of_another_protocol_are_not_compared(store, tmp_path: Path) -> None:
    for step, metric, name in ((10, 0.9, "hr@10"), (20, 0.3, "ndcg@10"), (30, 0.2, "ndcg@10"), (40, 0.1, "ndcg@10")):
        info = replace(info_of(step, metric), workers=1, config={"evaluation": {"metric": name}})
        upload(store, tmp_path, info, 0)
    prune_checkpoints(store, keep=1, keep_best=1)
    assert steps(store) == [20, 40]


def test_pruning_that_is_killed_leaves_nothing_that_seems_to_count(store, tmp_path: Path, monkeypatch) -> None:
    for step in (10, 20, 30):
        write(store, tmp_path, step)

    class Killed(FailingFiles):
        def delete_dir(self, path: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(Killed().store(store.root), keep=1)
    assert resume_point(store) == checkpoint_name(30)
    assert by_size(store, checkpoint_name(10)) is not None
    prune_checkpoints(store, keep=1)
    assert steps(store) == [30]


def test_a_checkpoint_that_cannot_be_deleted_ends_nothing(store, tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("genrec.training.checkpoint.logger.warning", lambda text, *values: said.append(text % values))
    for step in (10, 20):
        write(store, tmp_path, step)

    class Refusing(FailingFiles):
        def delete_dir(self, path: str) -> None:
            raise PermissionError("not yours")

    prune_checkpoints(Refusing().store(store.root), keep=1)
    assert any("could not all be deleted" in text and "not yours" in text for text in said)
    assert resume_point(store) == checkpoint_name(20)


def test_a_run_whose_checkpoints_are_all_damaged_refuses_to_start_over(store, tmp_path: Path) -> None:
    for step in (10, 20):
        path = write(store, tmp_path, step)
        prune_checkpoints(store, keep=2)
        (path / "engine" / "shard-1").write_bytes(b"weightz")
    assert resume_point(store, by_size) == path.name
    with pytest.raises(RunError, match=r"(?s)step_00000010: engine/shard-1 does not have.*SHA-256.*--fresh"):
        resume_point(store)


@pytest.mark.parametrize("ranks", [(0,), (1,)])
def test_a_first_checkpoint_that_was_cut_by_a_kill_starts_again(store, tmp_path: Path, ranks: tuple[int, ...]) -> None:
    write(store, tmp_path, 10, ranks=ranks)
    prune_checkpoints(store, keep=1)
    assert resume_point(store) is None
    drop_after(store, None)
    assert steps(store) == []


def test_what_is_newer_than_the_point_of_resuming_goes(store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(store, tmp_path, step)
    drop_after(store, checkpoint_name(20))
    assert steps(store) == [10, 20]


@pytest.mark.parametrize("call", ["open_input_stream", "get_file_info_selector"])
def test_a_storage_that_does_not_answer_is_not_taken_for_a_damaged_checkpoint(store, tmp_path: Path, call: str) -> None:
    for step in (10, 20):
        write(store, tmp_path, step)
    out_of_reach = FailingFiles(call).store(store.root)
    for ask in (resume_point, latest_checkpoint, lambda s: by_size(s, checkpoint_name(20))):
        with pytest.raises(
            StorageError, match=r"storage .*checkpoints could not be (read|listed) \(no route.*same command"
        ):
            ask(out_of_reach)
    prune_checkpoints(out_of_reach, keep=1)
    assert resume_point(store) == checkpoint_name(20)
    assert steps(store) == [10, 20]


def test_an_upload_that_is_cut_does_not_count_and_can_be_done_again(store, tmp_path: Path) -> None:
    write(store, tmp_path, 10)
    failing = FailingFiles("open_output_stream", path="engine/shard-1")
    upload(store, tmp_path, info_of(20), 0)
    with pytest.raises(StorageError, match="could not be written"):
        upload(failing.store(store.root), tmp_path, info_of(20), 1)
    assert not (Path(store.path("step_00000020")) / "rank_00001.json").exists()
    assert resume_point(store) == checkpoint_name(10)
    upload_checkpoint(store, tmp_path / "draft-20-1", checkpoint_name(20), 1)
    assert resume_point(store) == checkpoint_name(20)


def test_the_list_of_a_worker_is_uploaded_after_its_files(store, tmp_path: Path) -> None:
    written = FailingFiles()
    upload(written.store(store.root), tmp_path, info_of(10), 0)
    assert [name.rpartition("/")[2] for name in written.opened_for_writing][-1] == "rank_00000.json"
    assert len(written.opened_for_writing) == 3


def test_a_storage_without_room_gets_the_sentence_of_a_full_disk(store, tmp_path: Path) -> None:
    full = FailingFiles("open_output_stream", error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RunError, match="No space is left to write") as told:
        upload(full.store(store.root), tmp_path, info_of(10), 0)
    assert not isinstance(told.value, StorageError)  # trying again does not help


def test_the_hash_of_a_config_does_not_depend_on_order() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(CheckpointStore(tmp_path / "absent")) is None


def test_a_full_disk_gets_a_sentence_and_older_checkpoints_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    good = write(store, tmp_path, 10)
    draft = tmp_path / "draft"
    draft.mkdir()
    with pytest.raises(RunError, match=r"before step 20 could not be written.*No space left.*resume"):
        write_checkpoint(draft, FullDiskEngine(), info_of(20), 0)
    assert latest_checkpoint(store, by_digest) == good.name


def test_knows_its_own_topology(tmp_path: Path, write_prepared, make_config) -> None:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    info = info_of(10)
    same = make_config(prepared, "engine={name: torch}")
    assert info.workers == 2
    assert same_topology(info, same, 2)
    assert same_topology(info, make_config(prepared, "engine={name: torch, matmul_precision: high}"), 2)
    assert not same_topology(info, make_config(prepared, "engine={name: torch, precision: bf16}"), 2)
    assert not same_topology(info, same, 1)
    assert not same_topology(info, make_config(prepared), 2)
