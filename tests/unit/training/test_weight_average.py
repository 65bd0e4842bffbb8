"""The average of the weights: its formula, when it is updated, and that a run that goes on has the same one."""

import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.errors import RunError
from genrec.inference.export import read_export
from genrec.models.build import build_model
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint_list import find_checkpoint
from genrec.training.checkpoint_store import store_of
from genrec.training.checkpoint_tools import export_checkpoint
from genrec.training.engine import TorchEngine
from genrec.training.local import fit
from genrec.training.start import open_run_directory
from genrec.training.weight_average import AVERAGE_FILE, WeightAverage, fill_with_average, read_average

DECAY = 0.6


def changing(model: nn.Module, steps: int) -> list[torch.Tensor]:
    """Gives the one weight of a model new values, `steps` times; the values."""
    torch.manual_seed(0)
    return [torch.randn_like(next(model.parameters())) for _ in range(steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_formula(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2, bias=False).to(dtype)
    average = WeightAverage(model, DECAY)
    expected = model.weight.detach().double()
    for n, value in enumerate(changing(model, 20)):
        model.weight.data.copy_(value)
        average.update()
        d = min(DECAY, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.detach().double()
    with average.applied():
        tolerance = 1e-6 if dtype is torch.float32 else 2**-8  # what the model computes with is rounded to bf16
        torch.testing.assert_close(model.weight.detach().double(), expected, rtol=tolerance, atol=tolerance)


def test_the_trained_weights_come_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, DECAY)
    model.weight.data.add_(1.0)
    average.update()
    trained = model.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        assert not torch.equal(model.weight, trained)
        raise KeyError
    assert torch.equal(model.weight, trained)


def test_a_file_fits_the_same_weights_only(tmp_path: Path) -> None:
    WeightAverage(nn.Linear(3, 2), DECAY).save(tmp_path)
    with pytest.raises(RunError, match=r"average of weight has shape \[2, 3\].*\[2, 4\].*--fresh"):
        WeightAverage(nn.Linear(4, 2), DECAY).load(tmp_path)
    with pytest.raises(RunError, match=r"average of weight has shape \[2, 3\].*\[2, 4\].*--fresh"):
        fill_with_average(nn.Linear(4, 2), tmp_path)


def test_an_average_that_was_not_kept_begins_anew_and_says_so(tmp_path: Path, caplog) -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, DECAY)
    average.update()
    model.weight.data.add_(1.0)
    with caplog.at_level(logging.WARNING):
        average.load(tmp_path)
    assert "holds no average of the weights" in caplog.text
    assert average.num_updates == 0
    with average.applied():
        assert bool((model.weight > 0.4).any())
    average.save(tmp_path)
    assert torch.equal(read_average(tmp_path)[1]["weight"], model.weight)


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, 12).tolist() for _ in range(40)]
    return write_prepared(tmp_path / "set", sequences, num_items=30)


def config_of(make_config, prepared: Path, name: str, *more: str) -> ExperimentConfig:
    return make_config(
        prepared,
        f"name={name}",
        "engine={name: torch}",
        "batch={tokens_per_step: 100, micro_batches_per_step: 1}",
        "model={name: sasrec, dim: 8, num_layers: 1, num_heads: 1, dropout: 0.2}",
        "optimizer={lr: 0.02, ema_decay: 0.8}",
        *more,
    )


def batch_of_three() -> Batch:
    arrays = (torch.tensor([1, 2, 3]).numpy(), torch.tensor([0, 3]).numpy())
    batch = batch_from_arrays(*arrays, targets=torch.tensor([2, 3, 4]).numpy())
    return type(batch)(
        **{name: getattr(batch, name) for name in batch.__slots__} | {"step_targets": 3, "step_weight": 3.0}
    )


def test_a_step_that_is_left_out_leaves_the_average_alone(make_config, prepared: Path) -> None:
    config = config_of(make_config, prepared, "skips")
    engine = TorchEngine(config, build_model(config, 30), config.engine, workers=1, device=torch.device("cpu"))
    assert engine.average is not None
    engine.before_update = lambda _: False
    engine.micro_step(batch_of_three(), lr=0.1, last=True)
    assert engine.average.num_updates == 0
    engine.before_update = lambda _: True
    engine.micro_step(batch_of_three(), lr=0.1, last=False)
    assert engine.average.num_updates == 0
    engine.micro_step(batch_of_three(), lr=0.1, last=True)
    assert engine.average.num_updates == 1


def train(config: ExperimentConfig) -> None:
    fit(config, open_run_directory(config, fresh=False, say=lambda _: None), time.time())


def lines(config: ExperimentConfig, kind: str) -> list[dict]:
    text = (run_dir_of(config).root / "metrics.jsonl").read_text()
    return [record for record in map(json.loads, text.splitlines()) if record["kind"] == kind]


def test_a_run_that_goes_on_has_the_same_average(make_config, prepared: Path, tmp_path: Path) -> None:
    every = ("train={max_steps: 6, checkpoint_every_steps: 3, keep_checkpoints: 9, evaluate_every_epochs: 1000}",)
    straight = config_of(make_config, prepared, "straight", *every)
    train(straight)
    halved = config_of(make_config, prepared, "halved", *every)
    train(halved)
    store = store_of(halved, run_dir_of(halved))
    store.delete("step_00000006", "state.json")
    train(halved)
    exports = [read_export(run_dir_of(config).export_path).state_dict for config in (straight, halved)]
    assert all(torch.equal(exports[0][name], exports[1][name]) for name in exports[0])
    # What is exported, and what a checkpoint is exported as, is the average and not the trained weights.
    newest = find_checkpoint(store, "latest")
    num_updates, average = read_average(Path(store.path(newest.name)))
    assert num_updates == 6
    export_checkpoint(newest, run_dir_of(halved), halved, tmp_path / "export")
    exported = read_export(tmp_path / "export").state_dict
    trained = torch.load(Path(store.path(newest.name)) / "torch.pt", weights_only=True)["model"]
    for name, value in average.items():
        assert torch.equal(exported[name], value)
        assert torch.equal(exports[1][name], value)
    assert not torch.equal(average["item_table.weight"], trained["item_table.weight"])


def test_the_average_is_what_is_validated(make_config, prepared: Path) -> None:
    length = "train={max_epochs: 2, log_every_steps: 1}"
    averaged, plain = (
        config_of(make_config, prepared, "averaged", length),
        config_of(make_config, prepared, "plain", length, "optimizer.ema_decay=null"),
    )
    train(averaged)
    train(plain)
    # The average changes nothing about training, and what is measured.
    assert [line["loss"] for line in lines(averaged, "train")] == [line["loss"] for line in lines(plain, "train")]
    found = [line["metrics"] for line in lines(averaged, "validation")]
    assert found != [line["metrics"] for line in lines(plain, "validation")]
    best = max(found, key=lambda metrics: metrics["ndcg@10"])
    final = json.loads((run_dir_of(averaged).root / "evaluation.json").read_text())
    assert final["validation"]["metrics"]["ndcg@10"] == pytest.approx(best["ndcg@10"], rel=1e-6)


def test_the_file_counts_among_those_of_the_checkpoint(make_config, prepared: Path) -> None:
    config = config_of(make_config, prepared, "listed", "train={max_steps: 2}")
    train(config)
    folder = Path(store_of(config, run_dir_of(config)).path("step_00000002"))
    assert AVERAGE_FILE in json.loads((folder / "rank_00000.json").read_text())
