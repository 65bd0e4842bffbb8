"""FLOPs of a step: against counts by hand, NVIDIA's published run, and what torch counts on the real models."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import batch_from_arrays
from genrec.models.attention import row_blocks
from genrec.models.build import build_model
from genrec.models.jagged import jagged_layout
from genrec.planning.flops import HSTU_ATTENTION_PASSES, step_flops

FULL = {"name": "full-softmax"}
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"name": "sasrec", "dim": 32, "num_layers": 2, "num_heads": 2, "feed_forward_dim": 48, "dropout": 0.1},
    "esasrec": {"name": "esasrec", "dim": 32, "num_layers": 2, "num_heads": 2},
    "decoder": {"name": "decoder", "dim": 32, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2},
    "hstu": {"name": "hstu", "dim": 32, "num_layers": 2, "num_heads": 2, "query_dim": 8, "value_dim": 24},
}


def config_of(model: dict[str, Any], loss: dict[str, Any] = FULL, **sections: Any) -> ExperimentConfig:
    return config_from_dict(
        {
            "name": "flops",
            "data": {"source": {"name": "synthetic"}, "prepared": "nowhere"},
            "sequence": {"max_length": 512},
            "model": model,
            "loss": loss,
            "train": {"max_steps": 1},
            **sections,
        }
    )


def product_flops(_: torch.Size, a: torch.Size, b: torch.Size, **__: object) -> int:
    """FLOPs of a product [m, k] with [k, n] that is added to what is there."""
    return 2 * a[0] * a[1] * b[1]


def counted(config: ExperimentConfig, num_items: int, lengths: list[int]) -> float:
    """FLOPs of the matrix products of one training step of the real model, as torch counts them."""
    torch.manual_seed(1)
    model = build_model(config, num_items).train()
    tokens = sum(lengths)
    items = np.arange(tokens) % num_items + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    in_place = {torch.ops.aten.addmm_: product_flops}  # the losses' gradients; torch counts the other form alone
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(batch_from_arrays(items, offsets, targets=items)).loss_sum.backward()
    return float(counter.get_total_flops())


def computed_pairs(lengths: list[int]) -> int:
    """Pairs that the CPU kernels compute: whole tiles of rows of padded groups, so more than half of the squares."""
    groups = jagged_layout(torch.tensor([0, *np.cumsum(lengths)]), num_heads=1).groups
    return sum(
        group.num_sequences * sum((last - first) * last for first, last in row_blocks(group.length)) for group in groups
    )


@pytest.mark.parametrize("name", MODELS)
def test_torch_counts_the_same_on_the_real_model(name: str) -> None:
    config, lengths = config_of(MODELS[name]), [200] * 3 + [512]
    flops = step_flops(config, 300, lengths)
    passes = HSTU_ATTENTION_PASSES if name == "hstu" else 3
    in_tiles = computed_pairs(lengths) / (sum(n * n for n in lengths) / 2)
    # The kernels do three passes where the formula of HSTU has 3.5, and whole tiles; torch counts matrix products only.
    kernels = flops.attention * in_tiles * 3 / passes
    expected = flops.projections + flops.feed_forward + flops.loss + kernels
    assert counted(config, 300, lengths) == pytest.approx(expected, rel=1e-9)
    assert 1 < in_tiles < 1.4
    assert flops.other == (0 if name != "hstu" else 2 * sum(lengths) * 2 * (2 * 24 + 32))


@pytest.mark.parametrize("name", MODELS)
def test_formula_and_counter_are_near_as_they_stand(name: str) -> None:
    config, lengths = config_of(MODELS[name]), [512] * 2  # equal lengths share a group: no padding
    assert step_flops(config, 300, lengths).total == pytest.approx(counted(config, 300, lengths), rel=0.1)


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ({"name": "sampled-softmax", "num_negatives": 64}, 65),
        ({"name": "bce", "num_negatives": 8, "per_position": False}, 9),
        ({"name": "gbce", "num_negatives": 16, "per_position": False}, 17),
        (FULL, 300),
    ],
)
def test_losses_score_the_target_and_its_negatives(loss: dict[str, Any], rows: int) -> None:
    config, lengths = config_of(MODELS["sasrec"], loss), [60, 60]  # one tile: the whole square is computed
    flops = step_flops(config, 300, lengths)
    assert flops.loss == 6 * 120 * 32 * rows
    # The target's own score is an element-wise product in the code, which torch does not count.
    own = 0 if loss == FULL else 6 * 120 * 32
    assert counted(config, 300, lengths) == flops.total - own + flops.attention


def test_hstu_of_nvidia_by_hand() -> None:
    model = {"name": "hstu", "dim": 1024, "num_layers": 8, "num_heads": 4, "query_dim": 256, "value_dim": 256}
    config = config_of(model, sequence={"max_length": 4_099}, batch={"tokens_per_step": 2**18})
    flops = step_flops(config, 1_000, np.full(32, 4_099))
    tokens = 32 * 4_099
    assert flops.projections == 8 * 6 * tokens * 1_024 * (4 * 1_024 + 1_024)
    assert flops.attention == 8 * 3.5 * 32 * 2 * 4 * 4_099**2 * 256
    assert flops.other == 8 * tokens * (2 * 1_024 + 4 * 1_024)
    # Published for this shape: 341.6 TFLOP/s during 187.0 ms.
    published = 341.6e12 * 0.187
    assert flops.total - flops.loss == pytest.approx(published, rel=0.02)


def test_squared_lengths_add_up_per_sequence() -> None:
    config = config_of(MODELS["sasrec"])
    whole, halves = step_flops(config, 300, [400]), step_flops(config, 300, [200, 200])
    assert whole.attention == 2 * halves.attention == 3 * 2 * 4 * 32 * 400**2 / 2
    assert whole.projections == halves.projections == 6 * 400 * 2 * 4 * 32 * 32
    assert step_flops(config, 300, []).total == 0


def test_heads_and_item_vectors_count() -> None:
    heads = {"action": {"weight": 0.2}, "dwell": {"weight": 0.1}}
    config = config_of(MODELS["sasrec"], heads=heads)
    assert step_flops(config, 300, [10], num_actions=5).other == 6 * 10 * (2 * 2 * 32 * 32 + 32 * 5 + 32)
    data = {
        "source": {"name": "synthetic"},
        "prepared": "nowhere",
        "item_vectors": {"path": "vectors.parquet"},
    }
    sampled = {"name": "sampled-softmax", "num_negatives": 64}
    config = config_of(MODELS["sasrec"], sampled, data=data, inputs={"item_vectors": {}})
    looked_up = 10 + 10 + 2 * 64  # inputs, targets, and the negatives of two micro-batches
    assert step_flops(config, 300, [10], vector_dim=7).other == 4 * looked_up * 7 * 32
