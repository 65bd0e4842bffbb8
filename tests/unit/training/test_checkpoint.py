"""Which checkpoints count: complete ones, whose files have their sizes and digests."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from genrec.errors import RunError
from genrec.training.checkpoint import (
    CheckpointInfo,
    checkpoint_name,
    config_hash,
    drop_after,
    find_problem,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    publish_by_copy,
    read_info,
    resume_point,
    same_topology,
    write_checkpoint,
)
from genrec.training.state import TrainState


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
    folder: Path, tmp_path: Path, step: int, ranks: tuple[int, ...] = (0, 1), metric: float | None = None
) -> Path:
    for rank in ranks:
        draft = tmp_path / f"draft-{step}-{rank}"
        draft.mkdir()
        write_checkpoint(draft, FileEngine(rank), info_of(step, metric), rank)
        publish_by_copy(draft, folder / checkpoint_name(step))
        assert not draft.exists()
    return folder / checkpoint_name(step)


def test_a_complete_checkpoint_counts_and_says_where_the_run_stood(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", tmp_path, 40)
    assert find_problem(path, digests=True) is None
    assert read_info(path) == info_of(40)


def test_the_newest_complete_one_is_used_and_newer_ones_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    good = write(folder, tmp_path, 10)
    write(folder, tmp_path, 20, ranks=(0,))  # worker 1 died before its list was written
    cut = write(folder, tmp_path, 30)
    (cut / "engine" / "shard-1").write_bytes(b"weig")
    warnings: list[str] = []
    assert latest_checkpoint(folder, warn=warnings.append) == good
    assert [name for name in ("step_00000030", "step_00000020") if any(name in w for w in warnings)] == [
        "step_00000030",
        "step_00000020",
    ]
    assert "has 4 bytes and should have 7" in warnings[0]
    assert "incomplete" in warnings[1]


def test_a_flipped_bit_is_found_by_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", tmp_path, 10)
    (path / "engine" / "shard-0").write_bytes(b"weightz")
    assert find_problem(path, digests=False) is None
    assert "SHA-256" in str(find_problem(path, digests=True))


def names(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(folder)]


def test_pruning_keeps_the_newest_and_what_may_still_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        write(folder, tmp_path, step)
    write(folder, tmp_path, 25, ranks=(0,))  # cut, and older than one that counts
    write(folder, tmp_path, 40, ranks=(1,))  # another worker may be about to finish it
    prune_checkpoints(folder, keep=2)
    assert names(folder) == [20, 30, 40]


def test_pruning_without_one_that_counts_deletes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write(folder, tmp_path, 10, ranks=(1,))
    write(folder, tmp_path, 20, ranks=(0,))
    prune_checkpoints(folder, keep=1)
    assert names(folder) == [10, 20]


def test_the_best_are_kept_besides_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    metrics = {10: 0.3, 20: 0.5, 30: None, 40: 0.5, 50: 0.1, 60: 0.2}
    for step, metric in metrics.items():
        write(folder, tmp_path, step, metric=metric)
    prune_checkpoints(folder, keep=1, keep_best=3)
    assert names(folder) == [10, 20, 40, 60]
    prune_checkpoints(folder, keep=1, keep_best=1)
    assert names(folder) == [20, 60]  # of two that are equal, the earlier
    prune_checkpoints(folder, keep=1)
    assert names(folder) == [60]


def test_metrics_of_another_protocol_are_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step, metric, name in ((10, 0.9, "hr@10"), (20, 0.3, "ndcg@10"), (30, 0.2, "ndcg@10"), (40, 0.1, "ndcg@10")):
        draft = tmp_path / f"draft-{step}"
        draft.mkdir()
        info = replace(info_of(step, metric), workers=1, config={"evaluation": {"metric": name}})
        write_checkpoint(draft, FileEngine(0), info, 0)
        publish_by_copy(draft, folder / checkpoint_name(step))
    prune_checkpoints(folder, keep=1, keep_best=1)
    assert names(folder) == [20, 40]


def test_pruning_that_is_killed_leaves_nothing_that_seems_to_count(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        write(folder, tmp_path, step)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genrec.training.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(folder, keep=1)
    monkeypatch.undo()
    assert resume_point(folder) == folder / checkpoint_name(30)
    assert find_problem(folder / checkpoint_name(10), digests=False) is not None
    prune_checkpoints(folder, keep=1)
    assert names(folder) == [30]


def test_a_checkpoint_that_cannot_be_deleted_ends_nothing(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("genrec.training.checkpoint.logger.warning", lambda text, *values: said.append(text % values))
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        write(folder, tmp_path, step)

    def refuse(path: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("genrec.training.checkpoint.shutil.rmtree", refuse)
    prune_checkpoints(folder, keep=1)
    assert any("could not be deleted whole: not yours" in text for text in said)
    assert resume_point(folder) == folder / checkpoint_name(20)


def test_a_run_whose_checkpoints_are_all_damaged_refuses_to_start_over(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        path = write(folder, tmp_path, step)
        prune_checkpoints(folder, keep=2)
        (path / "engine" / "shard-1").write_bytes(b"weightz")
    assert resume_point(folder, digests=False) == path
    with pytest.raises(RunError, match=r"(?s)step_00000010: engine/shard-1 does not have.*SHA-256.*--fresh"):
        resume_point(folder)


@pytest.mark.parametrize("ranks", [(0,), (1,)])
def test_a_first_checkpoint_that_was_cut_by_a_kill_starts_again(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    folder = tmp_path / "checkpoints"
    write(folder, tmp_path, 10, ranks=ranks)
    prune_checkpoints(folder, keep=1)
    assert resume_point(folder) is None
    drop_after(folder, None)
    assert names(folder) == []


def test_what_is_newer_than_the_point_of_resuming_goes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        write(folder, tmp_path, step)
    drop_after(folder, folder / checkpoint_name(20))
    assert names(folder) == [10, 20]


def test_the_hash_of_a_config_does_not_depend_on_order() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None


def test_a_full_disk_gets_a_sentence_and_older_checkpoints_stay(tmp_path: Path) -> None:
    good = write(tmp_path / "checkpoints", tmp_path, 10)
    draft = tmp_path / "draft"
    draft.mkdir()
    with pytest.raises(RunError, match=r"before step 20 could not be written.*No space left.*resume"):
        write_checkpoint(draft, FullDiskEngine(), info_of(20), 0)
    assert latest_checkpoint(tmp_path / "checkpoints", digests=True) == good


def test_knows_its_own_topology(tmp_path: Path, write_prepared, make_config) -> None:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    info = info_of(10)
    same = make_config(prepared, "engine={name: torch}", "cluster.workers=2", "batch.micro_batches_per_step=2")
    assert info.workers == 2
    assert same_topology(info, same)
    assert not same_topology(info, make_config(prepared, "engine={name: torch}"))
    assert not same_topology(info, make_config(prepared, "cluster.workers=2", "batch.micro_batches_per_step=2"))
