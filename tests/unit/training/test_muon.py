"""Muon for matrices and AdamW for the rest: PyTorch's own optimizers, on the right weights; and a run that goes on."""

from pathlib import Path

import pytest
import torch
from engine_runs import check_goes_on_bit_for_bit, engine_of, train
from torch import nn

from genrec.config import ExperimentConfig, MuonConfig
from genrec.errors import ConfigError
from genrec.models.build import build_model
from genrec.training.optim import MixedOptimizer, build_optimizer, set_learning_rate, weight_kinds

MUON = MuonConfig(name="muon", lr=0.02, weight_decay=0.1, momentum=0.9, beta2=0.95)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 4, bias=False))


def give_gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)


@pytest.mark.parametrize("matrix_lr", [None, 0.005])
def test_is_pytorchs_muon_and_adamw_each_on_its_weights(matrix_lr: float | None) -> None:
    config = MUON.model_copy(update={"matrix_lr": matrix_lr})
    mixed, reference = network(0), network(0)
    optimizer = build_optimizer(mixed, config)
    matrices = [reference[1].weight, reference[3].weight]
    rest = [reference[0].weight, reference[1].bias, *reference[2].parameters()]
    muon = torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(20):
        lr = config.lr * (1 - step / 40)
        set_learning_rate(optimizer, lr)
        set_learning_rate(muon, lr * (matrix_lr or config.lr) / config.lr)
        set_learning_rate(adamw, lr)
        for model in (mixed, reference):
            give_gradients(model, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for found, expected in zip(mixed.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_weight_without_gradient_stays_as_it_is() -> None:
    # A poisoned step is left out by hiding the gradients.
    model = network(0)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = build_optimizer(model, MUON)
    optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    return write_prepared(tmp_path / "set", [[1, 2, 3, 4]])


@pytest.mark.parametrize(("name", "num_matrices"), [("sasrec", 4), ("hstu", 3), ("decoder", 4)])
def test_matrices_are_those_of_linear_layers(make_config, prepared: Path, name: str, num_matrices: int) -> None:
    config = make_config(
        prepared, f"model={{name: {name}, dim: 8, num_layers: 1, num_heads: 1}}", "inputs.time_features=[gap]"
    )
    model = build_model(config, 9)
    matrices = {name for name, kind in weight_kinds(model).items() if kind == "matrix"}
    assert len(matrices) == num_matrices
    assert not [name for name in matrices if not name.startswith(("blocks.0.", "layers.0."))]


@pytest.fixture
def config(prepared: Path, make_config) -> ExperimentConfig:
    return make_config(
        prepared,
        "engine={name: torch}",
        "model={name: sasrec, dim: 6, num_layers: 1, num_heads: 1, dropout: 0.0}",
        "optimizer={name: muon, weight_decay: 0.1}",
    )


@pytest.mark.parametrize("way", ["load", "load_universal"])
def test_goes_on_bit_for_bit(config: ExperimentConfig, tmp_path: Path, way: str) -> None:
    assert isinstance(engine_of(config, 0).optimizer, MixedOptimizer)
    check_goes_on_bit_for_bit(config, tmp_path, way)


def test_a_run_that_goes_on_uses_the_settings_it_is_given(config: ExperimentConfig, tmp_path: Path) -> None:
    engine = engine_of(config, 0)
    train(engine, 1)
    engine.save(tmp_path)
    changed = config.model_copy(update={"optimizer": MUON})
    other = engine_of(changed, 0)
    other.load(tmp_path)
    muon, adamw = (next(g for g in other.optimizer.param_groups if g["kind"] == kind) for kind in ("muon", "adamw"))
    assert (muon["momentum"], adamw["betas"], adamw["weight_decay"]) == (0.9, (0.9, 0.95), 0.1)


def test_offload_is_refused(make_config, prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.name is muon, optimizer.table null; set engine.off"):
        make_config(prepared, "optimizer.name=muon", "engine={zero_stage: 2, offload_optimizer: true}")
