from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

import chaos_faults
from chaos_faults import KINDS, NotNow, Target, cut_shard, delete_checkpoint, schedule
from chaos_machine import ChaosError
from genrec.run_dir import RunDir


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_has_every_kind_twice_and_leaves_room_for_a_checkpoint(seed: int) -> None:
    planned = schedule(KINDS, 22, steps=2_000, interval=25, rng=Random(seed))
    counts = Counter(fault.kind.name for fault in planned)
    assert counts.keys() == {kind.name for kind in KINDS}
    assert set(counts.values()) == {2, 3} and counts.total() == 22
    steps = [0, *(fault.step for fault in planned), 2_000]
    assert steps[1] >= 2 * 25
    assert all(later - earlier > 25 for earlier, later in pairwise(steps))


def test_a_schedule_is_a_function_of_its_seed() -> None:
    first, second, third = (schedule(KINDS, 22, steps=2_000, interval=25, rng=Random(seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_too_many_faults_are_refused() -> None:
    with pytest.raises(ChaosError, match="take fewer faults or more steps"):
        schedule(KINDS, 22, steps=700, interval=25, rng=Random(1))


class _Worker:
    killed = False

    def kill(self) -> None:
        self.killed = True


def target_of(folder: Path, workers: list[tuple[int, _Worker]], commands: list[str]) -> Target:
    cluster = SimpleNamespace(train_workers=lambda: workers)
    return Target(cluster, None, RunDir(folder), lambda: commands.append("killed"))  # type: ignore[arg-type]


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The newest checkpoint that counts; the one after it is still being written."""
    for step, complete in ((50, True), (75, False)):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        (folder / "engine").mkdir(parents=True)
        (folder / "state.json").write_text('{"workers": 1}')
        (folder / "engine" / "shard.pt").write_bytes(b"x" * 1_000)
        if complete:
            (folder / "rank_00000.json").write_text('{"engine/shard.pt": {"num_bytes": 1000}}')
    return tmp_path / "checkpoints" / "step_00000050"


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_shard_is_followed_by_a_kill(newest: Path, tmp_path: Path, seed: int) -> None:
    worker, commands = _Worker(), []
    target = target_of(tmp_path, [(1, worker)], commands)
    assert target.checkpoint_step() == 50
    harm = cut_shard(target, Random(seed))
    assert target.newest_checkpoint() is None
    assert (newest / "engine" / "shard.pt").stat().st_size == 500
    assert worker.killed != bool(commands)  # one of the two
    assert "shard.pt cut in half, then SIGKILL" in harm.what


def test_a_deleted_checkpoint_is_gone_and_without_one_there_is_nothing_to_strike(newest: Path, tmp_path: Path) -> None:
    commands: list[str] = []
    delete_checkpoint(target_of(tmp_path, [], commands), Random(1))
    assert not newest.exists()
    assert commands == ["killed"]
    with pytest.raises(NotNow):
        delete_checkpoint(target_of(tmp_path, [], commands), Random(1))


def test_a_fault_waits_for_a_worker(tmp_path: Path) -> None:
    with pytest.raises(NotNow):
        chaos_faults.kill_worker(target_of(tmp_path, [], []), Random(1))
