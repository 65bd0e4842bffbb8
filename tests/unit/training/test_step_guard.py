"""Which steps are poisoned, what is written down, and what the policies make of it; one worker, made-up gradients."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from step_guard_context import context_of

from genrec.config import ExperimentConfig
from genrec.data.batch import MicroBatchId
from genrec.errors import RewindError, RunError
from genrec.training.context import WorkerContext
from genrec.training.preemption import notice_of_process
from genrec.training.state import TrainState
from genrec.training.step_guard import MIN_NORMS, StepGuard

NAN, INF = math.nan, math.inf


@pytest.fixture
def guard_with(tmp_path, write_prepared, make_config) -> Callable[..., StepGuard]:
    """`guard_with("faults.on_poisoned_step=skip")`: a guard of a run in `tmp_path`, before step 0."""
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])

    def make(*overrides: str) -> StepGuard:
        config: ExperimentConfig = make_config(prepared, *overrides)
        return StepGuard(config, context_of(tmp_path), TrainState())

    return make


def step(guard: StepGuard, norm: float | None, *losses: float) -> bool:
    """One step as the engine and the loop do it; whether its update was applied."""
    number = guard.state.step
    allowed = guard.allows(norm)
    applied = guard.check([(MicroBatchId(0, 0, 2 * number + part), loss) for part, loss in enumerate(losses or (1, 1))])
    assert applied == allowed
    guard.state.step += 1
    return applied


def lines_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "poisoned.jsonl").read_text().splitlines()]


def test_a_calm_run_writes_nothing(tmp_path, guard_with) -> None:
    guard = guard_with()
    assert [step(guard, norm) for norm in (1.0, 2.0, None, 1e6)] == [True] * 4
    assert not (tmp_path / "poisoned.jsonl").exists()


@pytest.mark.parametrize("norm", [NAN, INF])
def test_skip_leaves_out_the_step_and_goes_on(tmp_path, guard_with, norm: float) -> None:
    guard = guard_with("faults.on_poisoned_step=skip")
    assert [step(guard, 1.0), step(guard, norm, 2.0, NAN), step(guard, 1.0)] == [True, False, True]
    (line,) = lines_in(tmp_path)
    assert line["step"] == 1
    assert line["gradient_norm"] == str(norm)
    assert line["micro_batches"] == [{"id": [0, 0, 2], "loss": 2.0}, {"id": [0, 0, 3], "loss": "nan"}]


def test_stop_names_the_micro_batch_and_the_ways_out(tmp_path, guard_with) -> None:
    guard = guard_with()
    step(guard, 1.0)
    sentence = r"micro-batch \(0, 0, 3\) in step 1 is inf; lower optimizer.lr.*on_poisoned_step=skip.*poisoned.jsonl"
    with pytest.raises(RunError, match=sentence):
        step(guard, NAN, 1.0, INF)
    assert lines_in(tmp_path)[0]["policy"] == "stop"


def test_a_gradient_that_is_no_number_stops_though_the_loss_is_one(guard_with) -> None:
    with pytest.raises(RunError, match=r"Step 0 has the gradient norm nan; lower"):
        step(guard_with(), NAN)


def test_only_so_many_steps_are_skipped_also_over_restarts(tmp_path, guard_with) -> None:
    overrides = ("faults.on_poisoned_step=skip", "faults.max_poisoned_steps=2")
    guard = guard_with(*overrides)
    step(guard, NAN)
    step(guard, NAN)
    again = guard_with(*overrides)  # restarted from the checkpoint before step 0: the same steps do not count twice
    step(again, NAN)
    step(again, NAN)
    step(again, 1.0)
    with pytest.raises(RunError, match=r"raise faults.max_poisoned_steps \(2\)"):
        step(again, NAN)
    assert [line["step"] for line in lines_in(tmp_path)] == [0, 1, 3]


def test_rewind_leaves_the_step_out_after_the_restart(tmp_path, guard_with) -> None:
    guard = guard_with("faults.on_poisoned_step=rewind")
    step(guard, 1.0)
    with pytest.raises(RewindError):
        step(guard, INF)
    again = guard_with("faults.on_poisoned_step=rewind")
    assert [step(again, 1.0) for _ in range(3)] == [True, False, True]
    assert len(lines_in(tmp_path)) == 1


def test_a_line_that_a_kill_has_cut_is_no_obstacle(tmp_path, guard_with) -> None:
    guard = guard_with("faults.on_poisoned_step=skip")
    step(guard, NAN)
    with (tmp_path / "poisoned.jsonl").open("a") as file:
        file.write('{"step": 7, "pol')
    again = guard_with("faults.on_poisoned_step=skip")
    step(again, 1.0)
    step(again, NAN)
    third = guard_with("faults.on_poisoned_step=skip")
    assert [line["step"] for line in lines_in(tmp_path)] == [0, 1]
    assert step(third, 1.0)


def test_a_gradient_norm_far_above_its_median_poisons_only_when_asked_for(guard_with) -> None:
    calm, strict = guard_with(), guard_with("faults={on_poisoned_step: skip, max_gradient_norm_ratio: 10}")
    norms = [1.0 + 0.1 * (number % 3) for number in range(MIN_NORMS)]
    assert all(step(guard, norm) for norm in norms for guard in (calm, strict))
    assert step(calm, 100.0)
    assert [step(strict, norm) for norm in (10.0, 100.0, 1.0, 12.0)] == [True, False, True, False]


def test_the_first_norms_are_not_judged(guard_with) -> None:
    guard = guard_with("faults={on_poisoned_step: skip, max_gradient_norm_ratio: 2}")
    assert all(step(guard, 1.0) for _ in range(MIN_NORMS - 1))
    assert step(guard, 50.0)
    assert not step(guard, 50.0)


def test_a_vote_of_another_worker_counts(tmp_path, write_prepared, make_config, monkeypatch) -> None:
    faults = "faults={on_poisoned_step: skip, max_gradient_norm_ratio: 10}"
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), faults, "cluster.workers=2")
    guard = StepGuard(config, context_of(tmp_path), TrainState())
    guard.context = context_of(tmp_path, workers=2)
    # Stands for the process group: the other worker has seen too large a norm, and has been told to leave.
    votes = [torch.tensor(1.0)]
    monkeypatch.setattr(WorkerContext, "all_reduce", lambda _, values: values + votes.pop() if votes else values)
    others = torch.tensor([1.0, 0.0, 1.0])  # worker 0 has also seen results that end the run
    monkeypatch.setattr(WorkerContext, "start_all_reduce", lambda _, values: lambda: values + others)
    assert not step(guard, 1.0, 1.0)
    assert not (guard.told_to_leave or guard.told_to_stop)  # nobody waits for the sum
    assert step(guard, 1.0, 1.0)
    assert guard.told_to_leave
    assert guard.told_to_stop
    assert not guard.asks_cluster


def test_a_signal_is_voted_on(guard_with) -> None:
    guard, notice = guard_with(), notice_of_process()
    with notice.listening():
        step(guard, 1.0)
        assert not guard.told_to_leave
        assert notice.take(15)
        step(guard, 1.0)
        assert guard.told_to_leave
