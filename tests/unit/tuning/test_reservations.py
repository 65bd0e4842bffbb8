"""What the workers of a stopped trial hold is freed, once the trial's process must be gone."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.gcs_pb2 import PlacementGroupTableData

from genrec.cluster.reservation import RESERVATION_FILE, free_orphans, free_reservation
from genrec.run_dir import RunDir
from genrec.tuning import ray_sweep
from genrec.tuning.ray_trial import free_reservations
from genrec.tuning.records import SweepDir, Trial


def told(monkeypatch: pytest.MonkeyPatch, freed: list[str]) -> tuple[Any, SimpleNamespace]:
    """What hears of trials, with a clock that the test sets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(ray_sweep, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(ray_sweep, "free_reservations", lambda _, trial: freed.append(trial))
    monkeypatch.setattr(ray_sweep, "free_orphans", lambda: None)
    sweep = SimpleNamespace(trials=[Trial(number, {}) for number in range(3)])
    director = SimpleNamespace(
        sweep=sweep, folder=SweepDir(Path("sweep")), look=lambda: None, ended=lambda trial, error: None
    )
    return ray_sweep._Telling(director, lambda: None, SimpleNamespace(look=lambda: None)), clock


def test_a_trial_is_freed_when_its_process_must_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    telling, clock = told(monkeypatch, freed)
    telling.on_trial_complete(1, [], SimpleNamespace(custom_trial_name="0001"))
    telling.on_trial_error(1, [], SimpleNamespace(custom_trial_name="0002"))
    for seconds in (1, ray_sweep.CLEANUP_S):
        clock.now += seconds
        telling.on_step_begin(1, [])
        assert freed == []  # its controller may be there, and would start other workers
    clock.now += ray_sweep.CLEANUP_S
    telling.on_step_begin(1, [])
    telling.on_step_begin(1, [])
    assert freed == ["0001", "0002"]


def test_every_run_of_a_trial_is_freed_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepDir(tmp_path)
    for name in ("0001", "0001-1", "0001-2", "0002", "00010"):
        folder.run_path(name).mkdir(parents=True)
    freed: list[str] = []
    monkeypatch.setattr("genrec.cluster.reservation.free_reservation", lambda run: freed.append(run.root.name))
    free_reservations(folder, "0001")
    assert sorted(freed) == ["0001", "0001-1", "0001-2"]


@pytest.mark.parametrize(("state", "removed"), [("CREATED", 1), ("REMOVED", 0), (None, 0)])
def test_a_group_that_is_still_there_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, removed: int
) -> None:
    name = "ab" * 18
    groups: list[str] = []
    module = importlib.import_module("ray.util.placement_group")
    known = {} if state is None else {name: {"state": state}}
    monkeypatch.setattr(module, "placement_group_table", lambda: known)
    monkeypatch.setattr(module, "remove_placement_group", lambda group: groups.append(group.id.hex()))
    (tmp_path / RESERVATION_FILE).write_text(name)
    free_reservation(RunDir(tmp_path))
    free_reservation(RunDir(tmp_path))  # what is freed is forgotten
    assert groups == [name] * removed


def test_what_a_dead_controller_holds_is_freed_before_any_worker_could_note_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job, group_bytes = b"\1" * 4, 18

    def group(number: int, **values: Any) -> bytes:
        told: dict[str, Any] = {"creator_job_id": job, "creator_actor_id": b"\3" * 16, "creator_actor_dead": True}
        told |= {"state": PlacementGroupTableData.CREATED, **values}
        return PlacementGroupTableData(placement_group_id=bytes([number]) * group_bytes, **told).SerializeToString()

    groups = [
        group(1),
        group(2, state=PlacementGroupTableData.PENDING),
        group(3, creator_actor_dead=False),  # its controller lives
        group(4, state=PlacementGroupTableData.REMOVED),
        group(5, creator_job_id=b"\2" * 4),  # another user's
        group(6, is_detached=True),  # meant to outlive its maker
        group(7, creator_actor_id=b"\xff" * 16),  # the driver's own
    ]
    removed: list[str] = []
    accessor = SimpleNamespace(get_placement_group_table=lambda: groups)
    state = importlib.import_module("ray._private.state").state
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: accessor)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=job.hex))
    module = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(module, "remove_placement_group", lambda group: removed.append(group.id.hex()))
    free_orphans()
    assert removed == ["01" * group_bytes, "02" * group_bytes]


def test_orphans_are_looked_for_as_long_as_the_sweep_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    telling, clock = told(monkeypatch, [])
    looks: list[float] = []
    monkeypatch.setattr(ray_sweep, "free_orphans", lambda: looks.append(clock.now))
    for _ in range(3):
        telling.on_step_begin(1, [])
        clock.now += ray_sweep.LOOK_S
    assert len(looks) == 3
