import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from chaos_run import RunLostError, SupervisedRun, last_step, last_words
from genrec.run_dir import RunDir


def line(kind: str, step: int) -> str:
    return json.dumps({"kind": kind, "step": step, "time_s": float(step)}) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0.0)),
        (line("start", 0), (0, 0.0)),
        (line("train", 7) + line("validation", 7), (7, 7.0)),
        (line("train", 7) + '{"kind": "train", "st', (7, 7.0)),  # still being written
        (line("train", 7) + '{"kind": "tra\n' + line("start", 7), (7, 7.0)),  # cut by a full disk
        ("".join(line("train", step) for step in range(1, 1_000)), (999, 999.0)),
    ],
)
def test_the_last_step_of_a_growing_file(tmp_path: Path, text: str, expected: tuple[int, float]) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_step(tmp_path / "metrics.jsonl") == expected


def test_without_a_file_nothing_is_done(tmp_path: Path) -> None:
    assert last_step(tmp_path / "metrics.jsonl") == (0, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Error: the disk is full\nray says more\n\n", "Error: the disk is full"),
        ("one\n  two\n", "no sentence, and last 'two'"),
        ("", "it said nothing"),
    ],
)
def test_the_last_words_of_a_command(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "run.log"
    log.write_text("Error: of the command before\n" + text)
    assert last_words(log, start=29) == expected


class _Cluster:
    """A cluster without nodes, which can be made whole twice."""

    address = "none"
    network = SimpleNamespace(inside=lambda node: [])

    def __init__(self) -> None:
        self.starts = 0

    def environment(self, place: str) -> dict[str, str]:
        return {}

    def start(self) -> None:
        self.starts += 1
        if self.starts > 2:
            raise RunLostError("that is enough")


def supervised(folder: Path, *command: str) -> SupervisedRun:
    log = folder / "run.log"
    return SupervisedRun(_Cluster(), None, command, RunDir(folder / "run"), log, 25)  # type: ignore[arg-type]


def test_a_command_that_ends_well_is_run_once(tmp_path: Path) -> None:
    run = supervised(tmp_path, "config", "configs/chaos.yaml")
    run.carry_out([], Random(1), max_s=250)
    assert run.num_commands == 1
    assert "name: chaos" in (tmp_path / "run.log").read_text()


def test_a_command_that_fails_is_run_again_on_a_whole_cluster(tmp_path: Path) -> None:
    run = supervised(tmp_path, "config", "configs/none.yaml")
    with pytest.raises(RunLostError, match="that is enough"):
        run.carry_out([], Random(1), max_s=250)
    assert run.num_commands == 3


def test_a_run_that_takes_too_long_is_lost(tmp_path: Path) -> None:
    with pytest.raises(RunLostError, match="--max-minutes"):
        supervised(tmp_path, "config", "configs/chaos.yaml").carry_out([], Random(1), max_s=0)
