"""Histories of 16,384 events go the whole way: plan, packing, stream, model, gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.models.build import build_model

LONGEST = 16_384
MODELS = {
    "sasrec": "model={name: sasrec, dim: 4, num_layers: 1, num_heads: 1, dropout: 0.0}",
    "decoder": "model={name: decoder, dim: 4, num_layers: 1, num_heads: 1, dropout: 0.0, recompute: block}",
    "hstu": "model={name: hstu, dim: 4, num_layers: 1, query_dim: 4, value_dim: 4, dropout: 0.0, time_bias: false}",
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("decoder", "hstu")]


@pytest.mark.parametrize("model", ["sasrec", *SLOW])
def test_a_window_of_16k_events_is_trained(tmp_path: Path, write_prepared, make_config, model: str) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, length).tolist() for length in (LONGEST + 500, 40, 7)]
    folder = write_prepared(tmp_path / "set", sequences, num_items=30)
    config = make_config(
        folder,
        MODELS[model],
        f"sequence.max_length={LONGEST}",
        f"batch={{tokens_per_step: {2 * LONGEST}, micro_batches_per_step: 2}}",
    )
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": 1, "rank": 0, "workers": 1}
    batches = [batch for _, batch in worker_batches(local_tables(plan, **span), **span, parts=2)]
    longest = max(batches, key=lambda batch: batch.num_tokens)
    assert longest.offsets.diff().max() == LONGEST
    assert longest.items[-1] == sequences[0][-4]  # two events are held out, and one is the last target
    network = build_model(config, 30)
    (network(longest).loss_sum / longest.step_targets).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
