"""Which checkpoints count: complete ones, whose files have their sizes and digests."""

import errno
from pathlib import Path

import pytest

from genrec.errors import RunError
from genrec.training.checkpoint import (
    CheckpointInfo,
    checkpoint_name,
    find_problem,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    publish_by_copy,
    read_info,
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


def info_of(step: int) -> CheckpointInfo:
    state = TrainState(step=step, best_metric=0.5, best_step=3, elapsed_s=12.5)
    return CheckpointInfo(step, state, "hash", 2, {"name": "torch", "precision": "fp32"}, {"torch": "2"})


def write(folder: Path, tmp_path: Path, step: int, ranks: tuple[int, ...] = (0, 1)) -> Path:
    for rank in ranks:
        draft = tmp_path / f"draft-{step}-{rank}"
        draft.mkdir()
        write_checkpoint(draft, FileEngine(rank), info_of(step), rank)
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


def test_pruning_keeps_the_newest_and_deletes_what_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        write(folder, tmp_path, step)
    write(folder, tmp_path, 40, ranks=(1,))
    prune_checkpoints(folder, keep=2)
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000020", "step_00000030"]


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
