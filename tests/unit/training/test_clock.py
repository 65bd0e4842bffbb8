"""The parts of a step add up; what stands still measures nothing; collectives are taken out of what they interrupt."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.run_dir import read_metrics, run_dir_of
from genrec.training.clock import SECTIONS, StepClock, time_collectives
from genrec.training.local import fit

CPU = torch.device("cpu")


class SlowWork:
    def wait(self) -> str:
        time.sleep(0.02)
        return "done"


class SlowBackend:
    """Collectives that take 20 ms, at once or when they are waited for."""

    def all_reduce(self, values: list[int], async_op: bool = False) -> SlowWork | None:
        if async_op:
            return SlowWork()
        SlowWork().wait()
        values.append(1)
        return None


def test_sections_add_up_and_leave_no_gap() -> None:
    clock = StepClock(CPU)
    began = time.perf_counter()
    clock.start()
    for section in ("data_wait", "forward", "backward", "hooks", "forward"):
        clock.switch(section)
        time.sleep(0.005)
    seconds = clock.stop()
    elapsed = time.perf_counter() - began
    assert tuple(seconds) == SECTIONS
    assert sum(seconds.values()) == pytest.approx(elapsed, abs=0.002)
    assert seconds["forward"] >= 0.01 > seconds["communication"] == 0


def test_a_clock_that_stands_still_counts_nothing() -> None:
    clock = StepClock(CPU)
    clock.switch("forward")
    clock.start("hooks")
    seconds = clock.stop()
    clock.switch("backward")
    assert seconds["forward"] == seconds["backward"] == 0


def test_collectives_inside_a_section_are_communication() -> None:
    backend, clock, values = SlowBackend(), StepClock(CPU), [0]
    time_collectives(backend, StepClock(CPU))
    time_collectives(backend, clock)  # the last clock counts
    backend.all_reduce(values)
    clock.start("backward")
    backend.all_reduce(values)
    work = backend.all_reduce(values, async_op=True)
    assert work is not None and work.wait() == "done"
    assert clock.switch("optimizer") == "backward"
    seconds = clock.stop()
    assert values == [0, 1, 1]
    assert seconds["communication"] >= 0.04 > seconds["backward"]


@pytest.fixture
def profiled(tmp_path: Path, write_prepared, make_config) -> Callable[[int], ExperimentConfig]:
    """`profiled(steps)`: the config of a run of so many steps that was trained with a profile."""

    def train(steps: int) -> ExperimentConfig:
        prepared = write_prepared(tmp_path / f"set-{steps}", [[1 + (u + i) % 9 for i in range(8)] for u in range(40)])
        overrides = [f"runs_dir={tmp_path}", f"name=run-{steps}", f"train.max_steps={steps}", "engine.name=torch"]
        config = make_config(prepared, *overrides)
        run_dir_of(config).create(config)
        fit(config, run_dir_of(config), time.time(), profile=True)
        return config

    return train


def test_profile_of_a_run(profiled: Callable[[int], ExperimentConfig]) -> None:
    run = run_dir_of(profiled(20))
    told = json.loads((run.root / "profile" / "breakdown.json").read_text())
    (line,) = [line for line in read_metrics(run.metrics_path) if line["kind"] == "profile"]
    assert (told["first_step"], told["num_steps"], len(told["of_workers"])) == (5, 10, 1)
    assert (line["step"], line["step_s"]) == (15, told["step_s"])
    assert sum(told[f"{name}_s"] for name in SECTIONS) == pytest.approx(told["step_s"], abs=1e-5)
    assert min(told[f"{name}_s"] for name in ("data_wait", "forward", "backward", "optimizer", "hooks")) > 0
    trace = run.root / "profile" / "rank-0.json.gz"
    assert b"genrec.forward" in gzip.decompress(trace.read_bytes())


def test_a_run_that_is_too_short_says_so(
    profiled: Callable[[int], ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []  # the warnings, whatever other libraries have done to the logging of this process
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("genrec.training.profile.logger", logger)
    run = run_dir_of(profiled(3))
    assert not (run.root / "profile").exists()
    assert len(said) == 1 and "there is no profile" in said[0]
