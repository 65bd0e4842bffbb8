"""The models on a CUDA device: the same loss, gradients and rankings as on the CPU. Run with `make test-gpu`."""

import numpy as np
import pytest
import torch

from genrec.data.batch import batch_from_arrays
from genrec.models.build import build_model

pytestmark = pytest.mark.gpu

MODELS = {
    "sasrec": "model={name: sasrec, dim: 32, num_layers: 2, num_heads: 2, dropout: 0.0}",
    "esasrec": "model={name: esasrec, dim: 32, num_layers: 2, num_heads: 2, dropout: 0.0}",
    "decoder": "model={name: decoder, dim: 32, num_layers: 2, num_heads: 4, num_key_value_heads: 2, dropout: 0.0, "
    "recompute: block}",
    "hstu-softmax": "model={name: hstu, dim: 32, num_layers: 2, num_heads: 2, query_dim: 16, value_dim: 16, "
    "dropout: 0.0, concat_ua: true, attention: {name: softmax}}",
    "hstu": "model={name: hstu, dim: 32, num_layers: 2, num_heads: 2, query_dim: 16, value_dim: 16, dropout: 0.0}",
}


@pytest.mark.parametrize("model_name", MODELS)
def test_cuda_agrees_with_the_cpu(tmp_path, write_prepared, make_config, model_name: str) -> None:
    if not torch.cuda.is_available():
        pytest.fail("make test-gpu needs a CUDA device and a CUDA build of torch; this torch sees none")
    generator = np.random.default_rng(0)
    folder = write_prepared(tmp_path / "set", [generator.integers(1, 500, 20).tolist()], num_items=500)
    config = make_config(folder, MODELS[model_name], "sequence.max_length=64")
    torch.manual_seed(0)
    model = build_model(config, 500)
    lengths = generator.integers(1, 65, 40)
    items = generator.integers(1, 501, lengths.sum())
    times = np.sort(generator.integers(0, 10**6, lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    targets = generator.integers(1, 501, len(items))
    batch = batch_from_arrays(items, offsets, times=times, target_times=times + 5, targets=targets)
    results = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model.to(device).zero_grad()
        loss_sum = model(batch.to(device)).loss_sum
        loss_sum.backward()
        gradients = {name: p.grad.cpu().clone() for name, p in model.named_parameters()}
        results.append((loss_sum.item(), gradients))
    (cpu_loss, cpu_gradients), (cuda_loss, cuda_gradients) = results
    assert cuda_loss == pytest.approx(cpu_loss, rel=1e-4)  # fp32; matrix products add in another order
    for name, expected in cpu_gradients.items():
        torch.testing.assert_close(cuda_gradients[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
