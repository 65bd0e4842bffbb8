import math
from collections.abc import Iterator

import pytest

from chaos_judge import (
    Record,
    Restart,
    check_steps,
    check_windows,
    compare_metric,
    find_restarts,
    judge_faults,
    largest_difference,
    losses,
    summary_of,
)
from chaos_run import Injected

INTERVAL = 25


def trained(first: int, last: int, at_s: float) -> Iterator[Record]:
    """`train` lines of steps first to last, one a second."""
    for step in range(first, last + 1):
        yield {"kind": "train", "step": step, "time_s": at_s + step - first, "loss": 10.0 / step}


def started(step: int, at_s: float) -> Record:
    return {"kind": "start", "step": step, "time_s": at_s}


def workers(first: int, last: int, at_s: float) -> list[Record]:
    """What one group of workers writes: its `start` line comes after its first `train` line."""
    lines = list(trained(first, last, at_s))
    return [lines[0], started(first - 1, at_s), *lines[1:]]


def injected(at_step: int, time_s: float, *, checkpoint: int, intervals: int = 1) -> Injected:
    return Injected("worker killed", "", intervals, at_step, checkpoint, time_s)


# To step 60, back to 50, to step 110, and from there on without a loss.
RUN = [*workers(1, 60, 0.0), *workers(51, 110, 100.0), *workers(111, 200, 300.0)]


def test_restarts_are_found_from_the_steps_and_where_nothing_was_lost_from_the_start_lines() -> None:
    assert find_restarts(RUN) == [Restart(100.0, 60, 50), Restart(300.0, 110, 110)]
    assert find_restarts(workers(1, 60, 0.0)) == []


def test_workers_that_die_after_their_first_line_are_a_restart_too() -> None:
    again = [*workers(1, 60, 0.0), *trained(51, 51, 100.0), *workers(51, 70, 200.0)]
    assert find_restarts(again) == [Restart(100.0, 60, 50), Restart(200.0, 51, 50)]


def test_a_fault_costs_the_steps_after_the_last_checkpoint_and_the_time_to_the_next_step() -> None:
    first, second = judge_faults(
        [injected(60, 60.5, checkpoint=50), injected(110, 160.5, checkpoint=100)], RUN, INTERVAL
    )
    assert (first.steps_lost, first.recover_s, first.restarts, first.survived) == (10, 39.5, 1, True)
    assert (second.steps_lost, second.recover_s, second.allowed, second.survived) == (0, 139.5, INTERVAL, True)


def test_the_last_restart_ends_the_recovery_and_the_furthest_throw_counts() -> None:
    run = [*workers(1, 60, 0.0), *workers(51, 75, 100.0), *workers(51, 90, 200.0)]
    (result,) = judge_faults([injected(60, 60.0, checkpoint=50)], run, INTERVAL)
    assert (result.restarts, result.steps_lost, result.recover_s) == (2, 25, 140.0)


@pytest.mark.parametrize(
    ("checkpoint", "intervals", "allowed"),
    [(50, 1, 25), (25, 1, 35), (25, 2, 60)],  # at step 60: the checkpoint of step 50 is there, or still being written
)
def test_what_is_allowed(checkpoint: int, intervals: int, allowed: int) -> None:
    (result,) = judge_faults([injected(60, 60.0, checkpoint=checkpoint, intervals=intervals)], RUN, INTERVAL)
    assert result.allowed == allowed


def test_a_fault_is_not_survived_without_a_new_step_or_with_a_push() -> None:
    ended = injected(60, 60.5, checkpoint=50)
    (result,) = judge_faults([ended], RUN[:60], INTERVAL)
    assert (result.survived, result.recover_s) == (False, None)
    ended.stalled = True
    (result,) = judge_faults([ended], RUN, INTERVAL)
    assert not result.survived


def test_the_summary_counts_what_is_beyond_the_allowed() -> None:
    faults = [injected(60, 60.5, checkpoint=50), injected(110, 160.5, checkpoint=100)]
    faults[1].exits.append("exit code 1")
    figures = summary_of(judge_faults(faults, RUN, interval=5))
    assert figures["faults"] == figures["survived"] == 2
    assert (figures["steps_lost_max"], figures["beyond_allowed"], figures["commands_run_again"]) == (10, 0, 1)
    assert figures["recover_median_s"] == (39.5 + 139.5) / 2
    lost_more = judge_faults([injected(60, 60.5, checkpoint=58)], RUN, interval=5)
    assert summary_of(lost_more)["beyond_allowed"] == 1


def test_of_a_step_that_was_trained_again_the_last_loss_counts() -> None:
    records = [
        {"kind": "train", "step": 1, "loss": 3.0},
        {"kind": "validation", "step": 1},
        {"kind": "train", "step": 1, "loss": 2.0},
    ]
    assert losses(records) == {1: 2.0}


def test_loss_curves_are_compared_step_by_step() -> None:
    assert largest_difference({1: 2.0, 2: 4.0}, {1: 2.0, 2: 3.0}) == (0.25, 2)
    assert largest_difference({1: 2.0, 2: 4.0}, {1: 2.0}) == (math.inf, 2)
    assert largest_difference({}, {}) == (math.inf, 0)


def test_steps_without_a_line_or_beyond_the_end_are_named() -> None:
    assert check_steps(RUN, 200) == []
    assert check_steps(RUN[:-1], 200) == ["1 of 200 steps have no line in metrics.jsonl, the first 200"]
    assert check_steps(RUN, 199) == ["step 200 is beyond the planned end, 199"]


def micro_batch(step: int, part: int, users: list[int], epoch: int = 0) -> Record:
    return {"step": step, "part": part, "epoch": epoch, "users": users, "starts": [0] * len(users)}


PLANNED = [micro_batch(0, 0, [1, 2]), micro_batch(0, 1, [3]), micro_batch(1, 0, [1], epoch=1)]


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        (PLANNED, []),
        (PLANNED[:2], ["1 of 3 micro-batches were never trained, the first (1, 0)"]),
        ([*PLANNED, micro_batch(1, 1, [9], epoch=1)], ["not planned, the first (1, 1)"]),
        ([micro_batch(0, 0, [2, 1]), *PLANNED[1:]], ["1 micro-batches had other windows than planned"]),
        (
            [PLANNED[0], micro_batch(0, 1, [1]), PLANNED[2]],
            ["other windows than planned, the first (0, 1)", "1 windows count twice in an epoch"],
        ),
    ],
)
def test_windows_are_those_of_the_plan(counted: list[Record], words: list[str]) -> None:
    problems = check_windows(counted, PLANNED)
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


@pytest.mark.parametrize(("chaos", "within"), [(0.31, True), (0.29, True), (0.33, False)])
def test_a_metric_within_one_standard_error_is_within_noise(chaos: float, within: bool) -> None:
    def entry(value: float) -> Record:
        return {"metrics": {"hr@10": value}, "standard_errors": {"hr@10": 0.02}}

    assert compare_metric(entry(0.3), entry(chaos), "hr@10")["within"] is within
