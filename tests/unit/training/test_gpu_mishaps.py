"""What a run on GPUs does when memory runs out, and what is left of an engine that a rewind gives up."""

import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from step_guard_context import context_of

from genrec.config import ExperimentConfig
from genrec.config_models import DecoderConfig
from genrec.errors import RewindError, RunError
from genrec.training import local, worker
from genrec.training.start import open_run_directory

Configs = Callable[..., ExperimentConfig]


@pytest.fixture
def config(tmp_path: Path, write_prepared: Callable[..., Path], make_config: Configs) -> ExperimentConfig:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5]] * 8)
    return make_config(prepared, "engine={name: torch}", f"runs_dir={tmp_path}", "train.max_steps=2")


@pytest.mark.parametrize("phase", ["build_engine", "_train", "evaluate_run"])
def test_memory_that_runs_out_is_a_sentence_with_ways_out(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def runs_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB "
            "is free. See documentation for Memory Management"
        )

    monkeypatch.setattr(worker, phase, runs_out)
    run = open_run_directory(config, fresh=False, say=lambda _: None)
    with pytest.raises(RunError, match=r"ran out of GPU memory \(CUDA out.*2\.00 GiB\.\)\. `genrec plan") as caught:
        local.fit(config, run, time.time())
    assert "documentation" not in str(caught.value)
    assert DecoderConfig(name="decoder", recompute="block")  # what the sentence names


def test_a_rewind_gives_the_memory_of_the_old_engine_back(tmp_path: Path, config: ExperimentConfig) -> None:
    class Engine:
        def __init__(self) -> None:
            self.hook = self.step  # the circle that hooks of an optimizer make

        def step(self) -> None: ...

    old: list[weakref.ref[Engine]] = []

    def work(*_: object) -> None:
        if not old:
            old.append(weakref.ref(Engine()))
            raise RewindError("back")
        assert old[0]() is None

    gc.disable()
    try:
        local._run_until_done(config, context_of(tmp_path), work)
    finally:
        gc.enable()
