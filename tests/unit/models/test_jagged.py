"""Groups cost least, and the way to padded groups and back is exact in values and gradients."""

from itertools import combinations

import numpy as np
import pytest
import torch
from model_reference import LENGTHS

from genrec.errors import DataError
from genrec.models import jagged
from genrec.models.jagged import JaggedLayout, jagged_layout


def layout_of(lengths: tuple[int, ...], num_heads: int = 2) -> JaggedLayout:
    return jagged_layout(torch.tensor([0, *lengths]).cumsum(0), num_heads)


@pytest.fixture
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a new group cheap, so that short test sequences fall into several with some padding."""
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 500)


@pytest.mark.usefixtures("several_groups")
def test_pad_puts_every_token_where_its_sequence_is() -> None:
    layout = layout_of(LENGTHS)
    assert len(layout.groups) > 1
    assert len(layout.padding_rows) > 0
    num_tokens = sum(LENGTHS)
    rows = torch.arange(1.0, num_tokens * 2 * 3 + 1).view(num_tokens, 6)
    slots = layout.pad(rows)
    found = []
    for group in layout.groups:
        block = layout.block(slots, group).view(group.num_sequences, 2, group.length, 3)
        for sequence in block.transpose(1, 2).flatten(2):
            length = int((sequence != 0).all(dim=1).sum())
            assert (sequence[length:] == 0).all()
            found.append(sequence[:length])
    starts = np.cumsum([0, *LENGTHS])
    expected = [rows[starts[i] : starts[i + 1]] for i in np.argsort(LENGTHS, kind="stable")]
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("several_groups")
def test_unpad_undoes_pad() -> None:
    layout = layout_of(LENGTHS)
    rows = torch.randn(sum(LENGTHS), 6)
    assert torch.equal(layout.unpad(layout.pad(rows)), rows)


@pytest.mark.usefixtures("several_groups")
def test_gradients_of_both_directions() -> None:
    layout = layout_of((3, 1, 9, 4, 9, 5))
    assert len(layout.padding_rows) > 0
    rows = torch.randn(31, 4, dtype=torch.float64, requires_grad=True)
    slots = torch.randn(layout.token_rows.shape[0], 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.pad, rows)
    assert torch.autograd.gradcheck(layout.unpad, slots)


def test_positions_count_from_the_start_of_each_sequence() -> None:
    assert layout_of((3, 1, 2)).positions.tolist() == [0, 1, 2, 0, 0, 1]


def test_groups_cost_least_of_all_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 300)
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.sort(rng.integers(1, 40, rng.integers(1, 9)))

        def cost(cuts: tuple[int, ...], lengths: np.ndarray = lengths) -> float:
            ends = [*cuts, len(lengths)]
            starts = [0, *cuts]
            return sum((e - s) * lengths[e - 1] ** 2 + 300 for s, e in zip(starts, ends, strict=True))

        inner = range(1, len(lengths))
        least = min(cost(cuts) for size in range(len(lengths)) for cuts in combinations(inner, size))
        groups = layout_of(tuple(lengths)).groups
        assert sum(g.num_sequences * g.length**2 + 300 for g in groups) == least


def test_a_batch_of_nothing_and_a_sequence_of_nothing() -> None:
    assert layout_of(()).groups == ()
    with pytest.raises(DataError, match="sequence 1 of the batch has no events"):
        layout_of((2, 0, 3))
