"""`engine.name: auto`, and runs that cannot fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genrec.config import ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.errors import ConfigError
from genrec.planning import choose, fit, machine
from genrec.run_dir import load_saved_config
from genrec.training.local import fit as train_here
from genrec.training.start import open_run_directory


@pytest.fixture
def config(
    tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> Callable[..., ExperimentConfig]:
    rows = [np.random.default_rng(user).integers(1, 30, size=20).tolist() for user in range(64)]
    prepared = write_prepared(tmp_path / "set", rows, num_items=30)
    return lambda *overrides: make_config(
        prepared, "batch.tokens_per_step=512", "batch.micro_batches_per_step=4", *overrides
    )


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what this machine has."""

    def set_to(num_bytes: float) -> None:
        for module in (machine, fit):
            monkeypatch.setattr(module, "available_bytes", lambda: num_bytes)

    return set_to


def test_the_pick_is_saved_and_said_and_kept(config: Callable[..., ExperimentConfig]) -> None:
    auto, said = config("engine={name: auto, matmul_precision: high}"), []
    run = open_run_directory(auto, fresh=False, say=said.append)
    saved = load_saved_config(run.config_path)
    assert saved.engine.name == "torch"  # one worker has nobody to share with
    assert saved.engine.matmul_precision == "high"
    assert said == [text for text in said if text.startswith("engine: auto picked torch because it is the fastest")]
    train_here(auto, run, 0.0)
    # A run that has begun with another engine keeps that, whatever would be picked now.
    other = open_run_directory(config("engine={zero_stage: 1, matmul_precision: high}"), fresh=False, say=said.append)
    assert load_saved_config(other.config_path).engine.model_dump()["zero_stage"] == 1
    said.clear()
    again = open_run_directory(auto, fresh=False, say=said.append)
    assert load_saved_config(again.config_path).engine == load_saved_config(other.config_path).engine
    assert said[0] == "engine: auto keeps what the run began with, ZeRO-1."


def test_the_same_machine_picks_the_same(config: Callable[..., ExperimentConfig]) -> None:
    auto = config("engine={name: auto}", "cluster.workers=2")
    first, second = (choose.pick_engine(auto)[0] for _ in range(2))
    assert first == second
    assert first.batch == auto.batch


def test_auto_avoids_what_does_not_fit(config: Callable[..., ExperimentConfig], have: Callable[[float], None]) -> None:
    auto = config("engine={name: auto}", "cluster.workers=4", "model.dim=256", "model.num_layers=8")
    _, everything = choose.pick_engine(auto)
    assert "would not fit" not in everything
    windows = choose.read_windows(auto)
    options = choose.make_plan(auto, windows, choose.this_machine(auto, measure=False), engines_only=True).options
    totals = {one.engine: one.memory.total for one in options}
    limit = (min(totals.values()) + max(totals.values())) / 2
    have(4 * limit)
    picked, sentence = choose.pick_engine(auto)
    assert totals[choose.engine_words(picked)] <= limit
    too_large = [name for name, total in totals.items() if total > limit]
    assert all(name in sentence.partition("; ")[2] for name in too_large)
    assert sentence.endswith("would not fit.")
    have(4e6)
    with pytest.raises(ConfigError, match="no engine and no number of micro-batches fits"):
        choose.pick_engine(auto)


def test_a_run_that_cannot_fit_is_refused_with_the_nearest_that_does(
    config: Callable[..., ExperimentConfig],
    have: Callable[[float], None],
    write_prepared: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    many = write_prepared(tmp_path / "many", [list(range(1, 21))] * 1_000, num_items=30)
    batch = ("batch.tokens_per_step=16384", "batch.micro_batches_per_step=1")
    one = config(f"data.prepared={many}", *batch, "model.dim=256", "model.num_layers=8")
    manifest = load_manifest(one.data.prepared)
    fit.check_memory(one, manifest, "local")  # an ordinary machine has room
    options = choose.make_plan(one, choose.read_windows(one), choose.this_machine(one, measure=False)).options
    zero_2 = {o.config.batch.micro_batches_per_step: o.memory for o in options if o.engine == "ZeRO-2"}
    smallest = min(memory.total for memory in zero_2.values())
    assert smallest < zero_2[1].least < zero_2[1].total
    have(zero_2[1].least * 1.01)  # not enough for all that is predicted, but perhaps it will do
    fit.check_memory(one, manifest, "local")
    have((smallest + zero_2[1].least) / 2)
    sentence = (
        r"A worker needs at least .* with ZeRO-2 and batch.micro_batches_per_step=1 \(.* of it .*\), and has .*MiB; "
    )
    with pytest.raises(ConfigError, match=sentence + r"use batch.micro_batches_per_step=\d+, which needs less"):
        fit.check_memory(one, manifest, "local")
    fit.check_memory(config("engine={name: auto}"), manifest, "local")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    fit.check_memory(one, manifest, "ray")
    with pytest.raises(ConfigError, match="A worker needs at least"):
        fit.check_memory(one, manifest, "local")


def test_what_needs_no_look_is_told_without_one(
    config: Callable[..., ExperimentConfig], have: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config()
    guess = fit.generous_guess(one, 30)
    option = choose.make_plan(one, choose.read_windows(one), choose.this_machine(one, measure=False)).options
    same = next(o for o in option if o.engine == "ZeRO-2" and o.config.batch.micro_batches_per_step == 4)
    memory = same.memory
    assert guess > memory.total - memory.runtime - memory.data
    monkeypatch.setattr(choose, "refuse_what_cannot_fit", lambda _: pytest.fail("looked"))
    have(guess * 1.01)
    fit.check_memory(one, load_manifest(one.data.prepared), "local")
