"""The sweep benchmark's own arithmetic, and its space: the planted region is there."""

from typing import Any

import pytest
import yaml

import sweeps
from genrec.reporting.sweep_record import SweepRecord
from genrec.tuning.config import load_sweep
from genrec.tuning.proposals import listed_params
from genrec.tuning.sweep import check_sweep


def trial(number: int, worker_seconds: float, *values: float) -> dict[str, Any]:
    history = [{"epoch": float(epoch), "ndcg@10": value} for epoch, value in enumerate(values, start=1)]
    progress = {"worker_seconds": worker_seconds, "epoch": float(len(values)), "history": history}
    return {"number": number, "state": "finished", "progress": progress}


def test_worker_seconds_count_the_trials_before_and_the_epochs_until_then() -> None:
    record = SweepRecord(
        {"metrics": ["ndcg@10"], "modes": ["max"], "trials": [trial(0, 100.0, 0.1), trial(1, 60.0, 0.2, 0.3, 0.3)]}
    )
    assert sweeps.worker_seconds_to(record, 0.1) == pytest.approx(100.0)
    assert sweeps.worker_seconds_to(record, 0.25) == pytest.approx(140.0)
    assert sweeps.worker_seconds_to(record, 0.4) is None


def test_both_sweeps_try_the_same_trials_and_some_are_in_the_good_region(tmp_path) -> None:
    sweeps.write_files(tmp_path, 16)
    loaded = [load_sweep(tmp_path / f"{name}.yaml") for name in sweeps.SCHEDULERS]
    tried = []
    for spec, base in loaded:
        check_sweep(spec, base)
        tried.append(listed_params(spec, base.model_dump(mode="json")))
    assert tried[0] == tried[1]
    assert len(tried[0]) == 16
    rates = [params["optimizer.lr"] for params in tried[0]]
    assert sum(rate > 0.003 for rate in rates) >= 2
    assert rates[0] == yaml.safe_load((tmp_path / "base.yaml").read_text())["optimizer"]["lr"] < 0.001
