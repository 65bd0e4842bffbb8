"""The window log: a line a micro-batch, the later line of a step counts, a torn line does not."""

import json
from pathlib import Path

import pytest
import torch

from genrec.data.batch import Batch, MicroBatchId
from genrec.data.stream import Place
from genrec.run_dir import RunDir
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState
from genrec.training.window_log import WindowLogHook, trained_windows

NONE = torch.zeros(0, dtype=torch.int64)


def micro_batch(step: int, part: int, users: list[int]) -> tuple[Place, Batch]:
    values = torch.tensor(users)
    batch = Batch(NONE, NONE, NONE, NONE, NONE, NONE, MicroBatchId(0, 0, step), 1, users=values, starts=values * 10)
    return Place(step, part, 0.5, False), batch


def train(run: RunDir, rank: int, micro_batches: list[tuple[Place, Batch]], parts: int = 1) -> None:
    """What a worker does, micro-batch by micro-batch."""
    hook = WindowLogHook(run, rank, parts)
    for place, _ in hook.watch(micro_batches):
        hook.after_step(TrainState(step=place.step + 1), StepMeter())


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_line_says_who_was_trained(run: RunDir) -> None:
    train(run, 3, [micro_batch(0, 1, [7, 8])], parts=2)
    (line,) = (run.root / "windows" / "rank_00003.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found.pop("time_s") > 1e9
    assert found == {"step": 0, "part": 1, "parts": 2, "epoch": 0, "users": [7, 8], "starts": [70, 80]}


def test_nothing_is_written_before_the_step_is_done(run: RunDir) -> None:
    hook = WindowLogHook(run, 0, 2)
    assert len(list(hook.watch([micro_batch(0, 0, [1]), micro_batch(0, 1, [2])]))) == 2
    assert trained_windows(run) == []
    hook.after_step(TrainState(step=1), StepMeter())
    assert [line["users"] for line in trained_windows(run)] == [[1], [2]]


def test_a_step_trained_again_counts_once_whoever_trains_it(run: RunDir) -> None:
    train(run, 1, [micro_batch(0, 0, [1]), micro_batch(1, 0, [2]), micro_batch(2, 0, [3])])
    path = run.root / "windows" / "rank_00001.jsonl"
    path.write_text(path.read_text()[:-9])  # killed while it wrote the last line
    train(run, 0, [micro_batch(1, 0, [4]), micro_batch(2, 0, [5])])
    train(run, 1, [micro_batch(3, 0, [6])])
    assert [(line["step"], line["users"]) for line in trained_windows(run)] == [(0, [1]), (1, [4]), (2, [5]), (3, [6])]
    assert len(path.read_text().splitlines()) == 4


def test_a_step_trained_again_in_fewer_parts_counts_once(run: RunDir) -> None:
    train(run, 0, [micro_batch(step, part, [10 * step + part]) for step in (0, 1) for part in range(4)], parts=4)
    train(run, 1, [micro_batch(1, 0, [10, 13]), micro_batch(1, 1, [11, 12])], parts=2)
    assert [line["users"] for line in trained_windows(run)] == [[0], [1], [2], [3], [10, 13], [11, 12]]
