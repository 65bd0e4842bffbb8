"""Models and losses on a CUDA device: the loss and gradients of the CPU. Run with `make test-gpu`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.models.base import SequenceModel
from genrec.models.build import build_model

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
NUM_ITEMS = 500
MODELS = {
    "sasrec": "model={name: sasrec, dim: 32, num_layers: 2, num_heads: 2, dropout: 0.0}",
    "esasrec": "model={name: esasrec, dim: 32, num_layers: 2, num_heads: 2, dropout: 0.0}",
    "decoder": "model={name: decoder, dim: 32, num_layers: 2, num_heads: 4, num_key_value_heads: 2, dropout: 0.0, "
    "recompute: block}",
    "hstu-softmax": "model={name: hstu, dim: 32, num_layers: 2, num_heads: 2, query_dim: 16, value_dim: 16, "
    "dropout: 0.0, concat_ua: true, attention: {name: softmax}}",
    "hstu": "model={name: hstu, dim: 32, num_layers: 2, num_heads: 2, query_dim: 16, value_dim: 16, dropout: 0.0}",
}
LOSSES = {
    "full-in-tiles": "loss={name: full-softmax, max_logits_bytes: 65536}",
    "smoothed": "loss={name: full-softmax, label_smoothing: 0.1, learn_temperature: true}",
    "shared": "loss={name: sampled-softmax, num_negatives: 64}",
    "own": "loss={name: sampled-softmax, num_negatives: 64, per_position: true}",
    "popularity": "loss={name: sampled-softmax, num_negatives: 64, negatives: popularity}",
    "in-batch": "loss={name: sampled-softmax, num_negatives: 64, negatives: in-batch}",
    "bce": "loss={name: bce}",
    "gbce": "loss={name: gbce, num_negatives: 64, per_position: false}",
}

Build = Callable[[str, str], tuple[SequenceModel, Batch]]


@pytest.fixture
def build(tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]) -> Build:
    """`build(model, loss)`: the model, and a batch of 40 sequences of different lengths."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("make test-gpu needs a CUDA device and a CUDA build of torch; this torch sees none")
    generator = np.random.default_rng(0)
    folder = write_prepared(tmp_path / "set", [generator.integers(1, NUM_ITEMS, 20).tolist()], num_items=NUM_ITEMS)
    lengths = generator.integers(1, 65, 40)
    items, targets = (generator.integers(1, NUM_ITEMS + 1, lengths.sum()) for _ in range(2))
    times = np.sort(generator.integers(0, 10**6, lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = batch_from_arrays(items, offsets, times=times, target_times=times + 5, targets=targets)

    def make(model: str, loss: str) -> tuple[SequenceModel, Batch]:
        torch.manual_seed(0)
        built = build_model(make_config(folder, model, loss, "sequence.max_length=64"), NUM_ITEMS)
        built.item_table.train_counts = torch.arange(NUM_ITEMS + 1)
        return built, replace(batch, negatives=torch.from_numpy(targets[:64])) if "in-batch" in loss else batch

    return make


def loss_and_gradients(model: SequenceModel, batch: Batch, device: torch.device) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(1)  # the same negatives
    model.to(device).zero_grad()
    loss_sum = model(batch.to(device)).loss_sum
    loss_sum.backward()
    return loss_sum.item(), {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model_name", "loss_name"),
    [*((model, "full-in-tiles") for model in MODELS if model != "sasrec"), *(("sasrec", loss) for loss in LOSSES)],
)
def test_cuda_agrees_with_the_cpu(build: Build, model_name: str, loss_name: str) -> None:
    model, batch = build(MODELS[model_name], LOSSES[loss_name])
    cpu_loss, cpu_gradients = loss_and_gradients(model, batch, torch.device("cpu"))
    loss, gradients = loss_and_gradients(model, batch, DEVICE)
    assert loss == pytest.approx(cpu_loss, rel=1e-4)  # fp32; matrix products add in another order
    assert gradients.keys() == cpu_gradients.keys()
    for name, expected in cpu_gradients.items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("model_name", MODELS)
def test_autocast_is_near_fp32(build: Build, model_name: str) -> None:
    """Products in bf16 beside weights in fp32, as `engine={name: torch, precision: bf16}` computes."""
    model, batch = build(MODELS[model_name], LOSSES["shared"])
    exact, exact_gradients = loss_and_gradients(model, batch, DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        nearly, gradients = loss_and_gradients(model, batch, DEVICE)
    assert nearly == pytest.approx(exact, rel=0.02)
    assert gradients.keys() == exact_gradients.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
