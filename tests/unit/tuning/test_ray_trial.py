"""A trial's own account, and which failures are worth trying again, without Ray running."""

import time

import pytest

from genrec.errors import ConfigError, RunError, StorageError
from genrec.tuning.ray_trial import Account, _end_failed
from genrec.tuning.records import read_progress


def account_in(folder, trial="0002") -> Account:
    made = Account(folder / "progress" / f"{trial}.json", 10, 1_000)
    made.begin()
    return made


def test_costs_add_up_over_attempts(tmp_path) -> None:
    first = account_in(tmp_path)
    first.workers = 2
    first._began_s = time.time() - 30
    first.write()
    second = account_in(tmp_path)
    second.workers = 2
    second._began_s = time.time() - 10
    second.write()
    found = read_progress(second.path)
    assert found.attempts == 2
    assert found.seconds == pytest.approx(40, abs=1)
    assert found.worker_seconds == pytest.approx(80, abs=2)
    assert len(found.spans) == 2


def test_a_mistake_ends_the_trial_and_another_failure_is_tried_again(tmp_path) -> None:
    wrong = account_in(tmp_path)
    _end_failed(ConfigError("cluster.workers is too\n many."), wrong)
    assert read_progress(wrong.path).outcome == "failed"
    assert read_progress(wrong.path).error == "cluster.workers is too many."

    crashed = account_in(tmp_path, "0003")
    with pytest.raises(RunError):
        _end_failed(RunError("Training failed after 3 restarts."), crashed)
    assert read_progress(crashed.path).outcome is None  # Tune starts it again
    assert read_progress(crashed.path).error == "Training failed after 3 restarts."
    with pytest.raises(StorageError):
        _end_failed(StorageError("out of reach"), crashed)


def test_what_the_workers_wrote_down_as_hopeless_is_not_tried_again(tmp_path) -> None:
    account = account_in(tmp_path)
    run = tmp_path / "trials" / "0002"
    run.mkdir(parents=True)
    (run / "failure.json").write_text("{}")
    _end_failed(RunError("The loss is nan at step 3."), account)
    assert read_progress(account.path).outcome == "failed"


def test_a_new_start_forgets_the_error_of_the_one_before(tmp_path) -> None:
    failed = account_in(tmp_path)
    failed.progress.error = "out of reach"
    failed.write()
    assert read_progress(account_in(tmp_path).path).error is None
