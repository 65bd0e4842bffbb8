"""HSTU attention: the published buckets, exact gradients of all its forms, and a future that weighs nothing."""

import math

import pytest
import torch
from model_reference import LENGTHS, random_batch
from torch import Tensor

from genrec.models import attention, jagged
from genrec.models.attention import row_blocks
from genrec.models.hstu_attention import AttentionBias, AttentionForm, causal_biased_attention, time_buckets
from genrec.models.jagged import jagged_layout


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROW_BLOCK", 3)
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 15)


def bucket(gap: int) -> int:
    return min(math.floor(math.log(max(abs(gap), 1)) / 0.301), 128)


@pytest.mark.usefixtures("small_tiles")
def test_buckets_are_the_published_formula() -> None:
    batch = random_batch((7, 2, 5))
    layout = jagged_layout(batch.offsets, 1)
    tiles = iter(time_buckets(batch.times, batch.target_times, layout))
    checked = 0
    for group, (start, length) in zip(layout.groups, [(7, 2), (9, 5), (0, 7)], strict=True):
        assert (group.num_sequences, group.length) == (1, length)
        for first, last in row_blocks(length):
            tile = next(tiles)
            for i in range(first, last):
                for j in range(i + 1):
                    gap = int(batch.target_times[start + i] - batch.times[start + j])
                    assert tile[0, i - first, j] == bucket(gap)
                    checked += 1
    assert checked == 3 + 15 + 28


def test_buckets_of_extreme_gaps() -> None:
    times = torch.tensor([0, 10, 2**62])
    targets = torch.tensor([10, 3, 2**62])  # later, earlier, the same; the first of the last row saturates
    tile = time_buckets(times, targets, jagged_layout(torch.tensor([0, 3]), 1))[0][0]
    assert tile.tolist()[1][:2] == [bucket(3), bucket(7)]
    assert tile.tolist()[2] == [128, 128, 0]


FORMS = {
    "silu": AttentionForm(2, "silu", 1.0, 9.0),
    "silu-scaled-by-length": AttentionForm(2, "silu", 0.7, None),
    "softmax": AttentionForm(2, "softmax", 0.7, 1.0),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("num_heads", "with_time", "with_position"),
    [(1, True, True), (2, True, True), (2, True, False), (2, False, True), (2, False, False)],
)
def test_gradients_of_values_and_bias_tables(
    num_heads: int, with_time: bool, with_position: bool, form: AttentionForm
) -> None:
    torch.manual_seed(0)
    layout = jagged_layout(torch.tensor([0, 1, 6, 10]), num_heads)
    assert len(layout.groups) > 1
    assert len(layout.padding_rows) > 0
    vqk = torch.randn(10, num_heads * (3 + 2 * 2), dtype=torch.float64, requires_grad=True)
    time = torch.randn(129, dtype=torch.float64, requires_grad=True) if with_time else None
    position = torch.randn(9, dtype=torch.float64, requires_grad=True) if with_position else None
    batch = random_batch((1, 5, 4))
    buckets = [] if time is None else time_buckets(batch.times, batch.target_times, layout)

    def attend(vqk: Tensor, time: Tensor | None, position: Tensor | None) -> Tensor:
        return causal_biased_attention(vqk, layout, AttentionBias(time, position, buckets), form)

    assert torch.autograd.gradcheck(attend, (vqk, time, position))


@pytest.mark.parametrize("form", [f._replace(query_dim=1) for f in FORMS.values()], ids=FORMS)
def test_the_future_weighs_exactly_nothing(form: AttentionForm) -> None:
    layout = jagged_layout(torch.tensor([0, 70]), 1)
    for dtype in (torch.float32, torch.bfloat16):
        vqk = torch.randn(70, 3, dtype=dtype)
        changed = vqk.clone()
        changed[40:] = 1e3
        bias = AttentionBias(None, None, [])
        before, after = (causal_biased_attention(x, layout, bias, form) for x in (vqk, changed))
        assert torch.equal(before[:40], after[:40])
        assert not torch.equal(before[40:], after[40:])


@pytest.mark.parametrize("form", [f._replace(query_dim=4) for f in FORMS.values()], ids=FORMS)
def test_bf16_is_near_fp64(form: AttentionForm) -> None:
    torch.manual_seed(0)
    batch = random_batch()
    layout = jagged_layout(batch.offsets, 2)
    buckets = time_buckets(batch.times, batch.target_times, layout)
    exact = [torch.randn(sum(LENGTHS), 2 * 12), torch.randn(129), torch.randn(80)]
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        vqk, time, position = (x.bfloat16().to(dtype).requires_grad_() for x in exact)
        out = causal_biased_attention(vqk, layout, AttentionBias(time, position, buckets), form)
        grads = torch.autograd.grad(out.double().sin().sum(), (vqk, time, position))
        results.append([x.double() for x in (out, *grads)])
        assert all(x.dtype == dtype for x in (out, *grads))
    for exactly, nearly in zip(*results, strict=True):
        assert (exactly - nearly).norm() < 0.03 * exactly.norm()  # bf16 has 8 bits


def test_a_softmax_in_fp32_beside_products_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast on CUDA has it; on a CPU autocast leaves a softmax of bf16 as it is."""
    form, layout = FORMS["softmax"]._replace(query_dim=4), jagged_layout(torch.tensor([0, 5, 9]), 1)
    vqk = torch.randn(9, 12, dtype=torch.bfloat16, requires_grad=True)

    def attended() -> tuple[Tensor, Tensor]:
        out = causal_biased_attention(vqk, layout, AttentionBias(None, None, []), form)
        return out, torch.autograd.grad(out.sum(), vqk)[0]

    expected = attended()
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda scores, dim: softmax(scores.float(), dim=dim))
    for found, exact in zip(attended(), expected, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, exact, atol=2e-2, rtol=2e-2)
