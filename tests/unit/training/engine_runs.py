"""A few steps of a small model on plain PyTorch, and the claim that a run that goes on is the straight one."""

import dataclasses
from pathlib import Path

import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import batch_from_arrays
from genrec.models.build import build_model
from genrec.training.engine import TAG, TorchEngine
from genrec.training.universal import forget_universal, universal_state


def engine_of(config: ExperimentConfig, seed: int) -> TorchEngine:
    torch.manual_seed(seed)
    return TorchEngine(config, build_model(config, 9), config.engine, workers=1, device=torch.device("cpu"))


def train(engine: TorchEngine, steps: int) -> list[float]:
    """The loss sums of steps on the same four events."""
    batch = batch_from_arrays(
        torch.tensor([1, 2, 3, 4]).numpy(),
        torch.tensor([0, 4]).numpy(),
        targets=torch.tensor([2, 3, 4, 5]).numpy(),
        times=torch.tensor([1, 60, 4_000, 90_000]).numpy(),
        target_times=torch.tensor([60, 4_000, 90_000, 90_001]).numpy(),
    )
    batch = dataclasses.replace(batch, step_targets=4, step_weight=4.0)
    return [engine.micro_step(batch, lr=0.01, last=True).loss_sum for _ in range(steps)]


def check_goes_on_bit_for_bit(config: ExperimentConfig, folder: Path, way: str) -> None:
    """Three steps, a checkpoint read in the way `load` or `load_universal`, five more: the same losses, and falling."""
    engine = engine_of(config, 0)
    train(engine, 3)
    checkpoint = folder / "step_00000003"
    checkpoint.mkdir()
    engine.save(checkpoint)
    (checkpoint / "rank_00000.json").write_text(f'{{"{folder}": 1}}')
    other = engine_of(config, 1)
    if way == "load":
        other.load(checkpoint)
    else:
        state = universal_state(checkpoint, TAG, 3, {"name": "torch"}, lambda _: None)
        other.load_universal(state)
        forget_universal(state)
    losses = train(other, 5)
    assert losses == train(engine, 5)
    assert losses[-1] < losses[0]
