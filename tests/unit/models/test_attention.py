"""Softmax attention: equal to torch's own, exact gradients, and dropout that drops attention weights."""

import pytest
import torch
from model_reference import LENGTHS

from genrec.models import attention, jagged
from genrec.models.attention import causal_softmax_attention, library_attention, row_blocks
from genrec.models.jagged import JaggedLayout, jagged_layout


def layout_of(lengths: tuple[int, ...], num_heads: int = 2) -> JaggedLayout:
    return jagged_layout(torch.tensor([0, *lengths]).cumsum(0), num_heads)


def test_row_blocks_cover_every_row_once() -> None:
    for length in (1, 31, 64, 96, 97, 200, 1000):
        blocks = row_blocks(length)
        assert [row for first, last in blocks for row in range(first, last)] == list(range(length))
        assert max(last - first for first, last in blocks) <= 1.5 * attention.ROW_BLOCK


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_equals_the_library(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 1000)
    torch.manual_seed(0)
    layout = layout_of(LENGTHS)
    assert len(layout.groups) > 1
    qkv = torch.randn(sum(LENGTHS), 2 * 3 * 4, dtype=dtype, requires_grad=True)
    grad = torch.randn(sum(LENGTHS), 2 * 4, dtype=dtype)
    results = []
    for out in (causal_softmax_attention(qkv, layout), layout.unpad(library_attention(layout.pad(qkv), layout, 0.0))):
        results.append((out, *torch.autograd.grad(out, qkv, grad)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(causal_softmax_attention(qkv, layout), results[0][0], atol=0, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROW_BLOCK", 3)
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 15)
    layout = layout_of((1, 5, 4))
    assert len(layout.groups) > 1
    assert len(layout.padding_rows) > 0
    torch.manual_seed(0)
    qkv = torch.randn(10, 2 * 3 * 2, dtype=torch.float64, requires_grad=True)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return causal_softmax_attention(x, layout, dropout)

    assert torch.autograd.gradcheck(seeded, qkv)


def test_dropout_drops_attention_weights() -> None:
    layout = layout_of((8,), num_heads=1)
    q, k, identity = torch.randn(8, 8), torch.randn(8, 8), torch.eye(8)  # identity values: the output is the weights
    qkv = torch.cat([q, k, identity], dim=1)
    weights = causal_softmax_attention(qkv, layout)
    torch.manual_seed(0)
    draws = torch.stack([causal_softmax_attention(qkv, layout, 0.5) for _ in range(400)])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (2 * weights).expand_as(draws)[kept])
    past = torch.ones(8, 8, dtype=torch.bool).tril()
    assert kept[:, past].double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not kept[:, ~past].any()


def test_torchs_kernels_take_some_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of((3, 3, 3, 3, 3))
    slots = layout.pad(torch.randn(15, 2 * 3 * 4))
    whole = library_attention(slots, layout, 0.0)
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 2)
    torch.testing.assert_close(library_attention(slots, layout, 0.0), whole)
