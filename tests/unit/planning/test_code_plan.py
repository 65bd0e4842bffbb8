"""Plans of models that write codes: weights, arithmetic and activations against the real models."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import Batch, batch_from_arrays
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.planning.activations import load_of, measure_activations
from genrec.planning.code_flops import attended_lengths
from genrec.planning.flops import step_flops
from genrec.planning.model_size import model_size
from genrec.planning.workload import Catalogue
from genrec.semantic.run_map import made_up_ids

NUM_ITEMS, SIZES = 90, (6, 5, 4)
SMALL = {"dim": 32, "num_layers": 2, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "codes": {"name": "code-decoder", **SMALL, "separator": True},
    "items": {"name": "code-decoder", **SMALL, "history": "items", "item_ids": True},
    "tiger": {"name": "tiger", **SMALL, "head_dim": 8, "feed_forward_dim": 48, "max_history": 6},
}


def config_of(name: str) -> ExperimentConfig:
    return config_from_dict(
        {
            "name": "plan",
            "data": {"source": {"name": "synthetic"}, "prepared": "nowhere"},
            "semantic_ids": {"path": "nowhere"},
            "sequence": {"max_length": 32},
            "model": MODELS[name],
            "loss": {"name": "full-softmax"},
            "train": {"max_steps": 1},
        }
    )


def model_and_batch(config: ExperimentConfig, lengths: list[int]) -> tuple[SequenceModel, Batch]:
    torch.manual_seed(0)
    model = build_model(config, NUM_ITEMS, semantic_ids=made_up_ids(NUM_ITEMS, SIZES)).train()
    items = np.arange(sum(lengths) + 1) % NUM_ITEMS + 1
    return model, batch_from_arrays(items[:-1], np.concatenate([[0], np.cumsum(lengths)]), targets=items[1:])


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_the_real_model(name: str) -> None:
    config = config_of(name)
    size = model_size(config, Catalogue(NUM_ITEMS, NUM_ITEMS, code_sizes=SIZES))
    weights = dict(model_and_batch(config, [2])[0].named_parameters())
    table = weights.get("item_table.weight")
    assert size.total == sum(weight.numel() for weight in weights.values())
    assert size.table == (0 if table is None else table.numel())
    assert size.buffers == 4 * (NUM_ITEMS + 1) * 3


@pytest.mark.parametrize("name", MODELS)
def test_arithmetic_is_near_what_torch_counts(name: str) -> None:
    config, lengths = config_of(name), [16, 16]
    model, batch = model_and_batch(config, lengths)

    def product_flops(_: torch.Size, a: torch.Size, b: torch.Size, **__: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product_flops}  # the loss's gradients; torch counts the other form alone
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(batch).loss_sum.backward()
    expected = step_flops(config, NUM_ITEMS, lengths, code_sizes=SIZES).total
    # Padded groups, and whole squares where the formula has half: both are little here.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.15)


def test_sequences_that_attention_sees() -> None:
    lengths = np.array([3, 8])
    assert attended_lengths(config_of("codes"), 3, lengths).tolist() == [3 * 4 + 2, 8 * 4 + 2]
    assert attended_lengths(config_of("items"), 3, lengths).tolist() == [3, 8]
    assert attended_lengths(config_of("tiger"), 3, lengths).tolist() == [3, 6, 9, 3, 6, 9, 12, 15, 18, 18, 18]


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_near_what_autograd_keeps(name: str) -> None:
    config, lengths = config_of(name), [20, 11, 11, 5]
    model, batch = model_and_batch(config, lengths)
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), batch.items, batch.targets)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch).loss_sum
        actual = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    activations = measure_activations(config, code_sizes=SIZES)
    predicted = activations.kept(load_of(lengths, config, len(SIZES)), sum(SIZES))
    assert predicted == pytest.approx(actual, rel=0.3)
