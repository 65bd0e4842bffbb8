"""What the workers of a stopped trial hold is freed, once the trial's process must be gone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genrec.cluster.reservation import RESERVATION_FILE
from genrec.tuning import ray_sweep
from genrec.tuning.ray_trial import free_reservations
from genrec.tuning.records import SweepDir, Trial


def told(monkeypatch: pytest.MonkeyPatch, freed: list[str]) -> tuple[Any, SimpleNamespace]:
    """What hears of trials, with a clock that the test sets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(ray_sweep, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(ray_sweep, "free_reservations", lambda _, trial: freed.append(trial))
    sweep = SimpleNamespace(trials=[Trial(number, {}) for number in range(3)])
    director = SimpleNamespace(
        sweep=sweep, folder=SweepDir(Path("sweep")), look=lambda: None, ended=lambda trial, error: None
    )
    return ray_sweep._Telling(director, lambda: None), clock


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


def test_a_run_that_holds_nothing_needs_no_ray(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path)
    folder.run_path("0001").mkdir(parents=True)
    free_reservations(folder, "0001")
    assert not (folder.run_path("0001") / RESERVATION_FILE).exists()
