"""The decoder: its size, its rotary positions, and recomputing that changes nothing but the memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_reference import DECODER, NUM_ITEMS, experiment, random_batch

from genrec.config import load_config
from genrec.config_models import DecoderConfig
from genrec.errors import ConfigError
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.rotary import rotate, rotation_of


def build(**changes: Any) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(experiment(DECODER | changes), NUM_ITEMS)


def loss_and_gradients(model: SequenceModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One training pass with dropout, seeded; a second draw from the generator afterwards must agree too."""
    torch.manual_seed(1)
    loss_sum = model.train()(random_batch()).loss_sum
    gradients = list(torch.autograd.grad(loss_sum, list(model.parameters())))
    return loss_sum.detach(), [*gradients, torch.rand(3)]


def test_recomputing_gives_the_same_bits() -> None:
    kept, recomputed = (build(recompute=recompute, dropout=0.3) for recompute in ("none", "block"))
    (loss, gradients), (other_loss, other_gradients) = loss_and_gradients(kept), loss_and_gradients(recomputed)
    assert torch.equal(loss, other_loss)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(2)
    assert kept(random_batch()).loss_sum != loss  # dropout was on


def test_recomputing_keeps_a_fraction_of_the_activations() -> None:
    def bytes_kept(recompute: str) -> int:
        model = build(recompute=recompute, num_layers=8).train()
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.encode(random_batch())
        assert hidden.requires_grad
        return sum(kept.values())

    assert bytes_kept("block") < 0.1 * bytes_kept("none")


def test_more_than_a_billion_parameters() -> None:
    """configs/decoder_1b.yaml, counted by hand: 24 blocks of 45.1 million, and 100,000 items."""
    config = load_config(Path(__file__).parents[3] / "configs" / "decoder_1b.yaml")
    assert isinstance(config.model, DecoderConfig) and config.model.recompute == "block"
    dim, layers, heads, key_value_heads, inner, items = 2048, 24, 16, 4, 5632, 100_000
    with torch.device("meta"):
        built = build_model(config, items)
    attention = dim * dim + 2 * dim * key_value_heads * (dim // heads) + dim * dim
    block = attention + 3 * dim * inner + 2 * dim
    assert block == 45_092_864
    body = sum(p.numel() for name, p in built.named_parameters() if name != "item_table.weight")
    assert body == layers * block + dim == 1_082_230_784
    assert sum(p.numel() for p in built.parameters()) == body + (items + 1) * dim == 1_287_032_832


def test_width_of_the_feed_forward_part() -> None:
    for dim, inner in ((64, 192), (2048, 5504), (4096, 10944)):  # 8/3 dim: 170.7, 5461.3, 10922.7
        with torch.device("meta"):
            model = build_model(experiment({"name": "decoder", "dim": dim, "num_layers": 1}), NUM_ITEMS)
        assert model.get_submodule("blocks.0.feed_forward.contract").weight.shape == (dim, inner)


def test_products_of_rotated_heads_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(1, 2, 8, dtype=torch.float64)

    def product(query_place: int, key_place: int) -> torch.Tensor:
        turned = [
            rotate(x, rotation_of(torch.tensor([place]), 8, 10_000.0, x.dtype))
            for x, place in ((q, query_place), (k, key_place))
        ]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(5, 2), product(1005, 1002))
    torch.testing.assert_close(product(7, 7), (q * k).sum(-1))
    assert not torch.allclose(product(5, 2), product(5, 3))


def test_far_positions_are_exact_in_bf16() -> None:
    """Position 16,383 in bf16 would be 16,384; the angles are taken in fp64."""
    positions = torch.tensor([16_383])
    near, exact = (rotation_of(positions, 8, 10_000.0, dtype) for dtype in (torch.bfloat16, torch.float64))
    assert near.cos.dtype == torch.float32
    torch.testing.assert_close(near.sin.double(), exact.sin, atol=1e-7, rtol=0)
    assert rotate(torch.randn(1, 1, 8, dtype=torch.bfloat16), near).dtype == torch.bfloat16


def test_positions_matter() -> None:
    model = build().eval()
    batch = random_batch((2,))
    swapped = random_batch((2,))
    swapped.items.copy_(batch.items.flip(0))
    assert batch.items[0] != batch.items[1]
    first_last = [model.last_hidden(b) for b in (batch, swapped)]
    assert not torch.allclose(*first_last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, "dim (25) must be divisible by num_heads (4); use dim 28 or num_heads 1"),
        ({"dim": 20}, "dim / num_heads (20 / 4 = 5) must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads (3) must divide num_heads (4)"),
    ],
)
def test_widths_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(DECODER | changes)
    assert message in str(error.value)
