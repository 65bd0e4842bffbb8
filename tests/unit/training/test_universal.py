"""The universal form of a checkpoint, with plain PyTorch: whole, converted once, and clear about what it lacks."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import batch_from_arrays
from genrec.errors import DataError, RunError
from genrec.models.build import build_model
from genrec.training.engine import TAG, TorchEngine
from genrec.training.universal import forget_universal, universal_state

STEPS = 3


@pytest.fixture
def config(tmp_path: Path, write_prepared, make_config) -> ExperimentConfig:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    return make_config(prepared, "engine={name: torch}", "model={name: sasrec, dim: 6, num_layers: 1, num_heads: 1}")


def engine_of(config: ExperimentConfig, seed: int) -> TorchEngine:
    torch.manual_seed(seed)
    return TorchEngine(config, build_model(config, 9), config.engine, workers=1, device=torch.device("cpu"))


@pytest.fixture
def trained(config: ExperimentConfig, tmp_path: Path) -> tuple[TorchEngine, Path]:
    """An engine after a few steps, and its checkpoint."""
    engine = engine_of(config, 0)
    train(engine, STEPS)
    folder = tmp_path / "step_00000003"
    folder.mkdir()
    engine.save(folder)
    (folder / "rank_00000.json").write_text("{}")
    return engine, folder


def train(engine: TorchEngine, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        batch = batch_from_arrays(
            torch.tensor([1, 2, 3, 4]).numpy(),
            torch.tensor([0, 4]).numpy(),
            targets=torch.tensor([2, 3, 4, 5]).numpy(),
        )
        batch = dataclasses.replace(batch, step_targets=4, step_weight=4.0)
        torch.manual_seed(step)
        losses.append(engine.micro_step(batch, lr=0.01, last=True).loss_sum)
    return losses


def test_goes_on_bit_for_bit(config: ExperimentConfig, trained: tuple[TorchEngine, Path]) -> None:
    engine, folder = trained
    said: list[str] = []
    state = universal_state(folder, TAG, STEPS, {"name": "torch"}, said.append)
    other = engine_of(config, 1)
    other.load_universal(state)
    assert train(other, 5) == train(engine, 5)
    assert said[0].startswith("Converting")
    assert universal_state(folder, TAG, STEPS, {"name": "torch"}, said.append).folder == state.folder
    assert len(said) == 2  # not converted again
    forget_universal(state)
    assert not state.folder.exists()


def test_a_conversion_that_was_killed_is_done_again(trained: tuple[TorchEngine, Path]) -> None:
    _, folder = trained
    state = universal_state(folder, TAG, STEPS, {"name": "torch"}, lambda _: None)
    (state.folder / "done").unlink()
    (state.folder / "zero" / "item_table.weight" / "fp32.pt").write_bytes(b"half")
    again = universal_state(folder, TAG, STEPS, {"name": "torch"}, lambda _: None)
    assert again.tensor("item_table.weight", "fp32", (10, 6)).shape == (10, 6)
    forget_universal(again)


def test_what_others_may_have_put_there_is_not_used(
    trained: tuple[TorchEngine, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder for temporary files, which is everybody's, another user could wait with weights of their own."""
    _, folder = trained
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = universal_state(folder, TAG, STEPS, {"name": "torch"}, lambda _: None)
    own = state.folder.parent
    assert own.parent == tmp_path
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)
    with pytest.raises(DataError, match="others may write in it"):
        universal_state(folder, TAG, STEPS, {"name": "torch"}, lambda _: None)


def test_says_what_is_missing(trained: tuple[TorchEngine, Path]) -> None:
    _, folder = trained
    state = universal_state(folder, TAG, STEPS, {"name": "torch"}, lambda _: None)
    with pytest.raises(RunError, match=r"no fp32 of the weight nothing.*--fresh"):
        state.tensor("nothing", "fp32", (1,))
    with pytest.raises(RunError, match=r"item_table.weight has 60 elements.*--fresh"):
        state.tensor("item_table.weight", "fp32", (11, 6))
    forget_universal(state)
