import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from chaos import FULL, QUICK, Setting, _kinds, judge, planned_windows
from chaos_faults import KINDS, Planned, schedule
from chaos_report import markdown
from chaos_run import Injected
from genrec.bench.result import Result
from genrec.config import ExperimentConfig

STEPS = 12
SETUP = {"nodes": 3, "seed": 1, "namespaces": True, "volume": True, "faults_left_out": [], "commands": 2}


def test_the_sizes_hold_every_kind() -> None:
    for size, times in ((QUICK, 1), (FULL, 2)):
        planned = schedule(KINDS, size["faults"], steps=size["steps"], interval=25, rng=Random(1))
        counts = Counter(fault.kind.name for fault in planned)
        assert set(counts) == {kind.name for kind in KINDS}
        assert min(counts.values()) == times


def test_kinds_are_chosen_by_name_and_a_wrong_one_is_told_the_right_ones() -> None:
    assert [kind.name for kind in _kinds("node killed, shard cut")] == ["node killed", "shard cut"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'disk' is none of: worker killed, .*disk full"):
        _kinds("disk")


@pytest.fixture
def config(tmp_path: Path, write_prepared: Callable, make_config: Callable) -> ExperimentConfig:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5, 6] for _ in range(60)], num_items=50)
    steps = f"train={{max_steps: {STEPS}, log_every_steps: 1, checkpoint_every_steps: 4}}"
    return make_config(
        prepared, steps, "tracking.log_windows=true", "batch={tokens_per_step: 60, micro_batches_per_step: 2}"
    )


def fabricate(folder: Path, config: ExperimentConfig, trained: list[tuple[int, float]], metric: float) -> None:
    """A run directory whose steps were trained in this order and at these times."""
    (folder / "windows").mkdir(parents=True)
    planned = list(planned_windows(config, STEPS))
    lines = [{**line, "time_s": at_s} for step, at_s in trained for line in planned if line["step"] == step - 1]
    (folder / "windows" / "rank_00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = [{"kind": "train", "step": step, "time_s": at_s, "loss": 1 / step} for step, at_s in trained]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in train))
    test = {"metrics": {"ndcg@10": metric}, "standard_errors": {"ndcg@10": 0.01}}
    (folder / "evaluation.json").write_text(json.dumps({"test": test}))


STRAIGHT = [(step, float(step)) for step in range(1, STEPS + 1)]
THROWN_BACK = [*STRAIGHT[:6], *((step, 100.0 + step) for step in range(5, STEPS + 1))]


def verdict(out: Path, config: ExperimentConfig) -> Result:
    fault = Injected("worker killed", "SIGKILL to the worker on node 1", 1, at_step=6, checkpoint_step=4, time_s=6.5)
    setting = Setting([], config, [Planned(6, 0.0, KINDS[0])], max_s=1.0)
    return judge(setting, SimpleNamespace(faults=[fault]), "", out, SETUP)  # type: ignore[arg-type]


def test_a_run_that_lost_two_steps_and_trained_them_again_is_right(tmp_path: Path, config: ExperimentConfig) -> None:
    fabricate(tmp_path / "calm", config, STRAIGHT, 0.300)
    fabricate(tmp_path / "chaos", config, THROWN_BACK, 0.305)
    result = verdict(tmp_path, config)
    assert result.medians["problems"] == []
    assert result.rows[0]["steps_lost"] == 2
    assert result.rows[0]["recover_s"] == 98.5
    text = markdown(result)
    assert "faults survived: 1 of 1" in text and "nothing wrong" in text
    assert "| 6 | 4 | SIGKILL to the worker on node 1 | 2 | 1 | 98.5 | went on |" in text


def test_a_lost_window_a_lost_step_and_another_metric_are_wrong(tmp_path: Path, config: ExperimentConfig) -> None:
    fabricate(tmp_path / "calm", config, STRAIGHT, 0.30)
    fabricate(tmp_path / "chaos", config, THROWN_BACK[:-1], 0.35)
    problems = "\n".join(verdict(tmp_path, config).medians["problems"])
    assert "2 of 24 micro-batches were never trained" in problems
    assert "1 of 12 steps have no line" in problems
    assert "more than a standard error" in problems


def test_a_run_without_an_end_is_wrong(tmp_path: Path, config: ExperimentConfig) -> None:
    fabricate(tmp_path / "calm", config, STRAIGHT, 0.30)
    assert "the run has no final metric" in verdict(tmp_path, config).medians["problems"]
