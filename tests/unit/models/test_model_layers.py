"""Dropout drops the right share and scales the rest; the input layer refuses what its window cannot hold."""

import pytest
import torch
from model_reference import random_batch

from genrec.errors import DataError
from genrec.models.jagged import jagged_layout
from genrec.models.layers import Dropout, InputLayer, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_is_zero_with_probability_p_and_of_mean_one(p: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1000, 1001), p)
    dropped = (mask == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / mask.numel()) ** 0.5)  # four standard errors
    assert mask[mask != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)  # p to the nearest 1/65536


def test_mask_follows_the_seed_and_the_dtype() -> None:
    like = torch.empty(7, 3, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = keep_mask(like, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, keep_mask(like, 0.5))
    assert first.dtype == torch.bfloat16
    assert first.unique().tolist() == [0.0, 2.0]


def test_neighbouring_elements_are_independent() -> None:
    torch.manual_seed(0)
    kept = (keep_mask(torch.empty(400_000), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 64):
        assert abs(4 * (kept[distance:] * kept[:-distance]).mean().item()) < 4 / 400_000**0.5


def test_dropout_of_nearly_everything_is_finite() -> None:
    assert torch.isfinite(keep_mask(torch.empty(10_000), 0.999_999_9)).all()


def test_dropout_does_nothing_outside_training() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    torch.manual_seed(0)
    assert (Dropout(0.5).train()(torch.ones(1000)) == 0).any()


def test_a_sequence_beyond_the_window_is_refused() -> None:
    layer = InputLayer(4, 2, 0.0, std=0.1)
    batch = random_batch((3, 5))
    layout = jagged_layout(batch.offsets, 1)
    with pytest.raises(DataError, match=r"5 events is longer than the model's window of 4"):
        layer(torch.zeros(8, 2), batch, layout)
