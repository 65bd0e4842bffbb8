"""Label smoothing of the full softmax against torch's own, in tiles of every shape."""

import pytest
import torch
import torch.nn.functional as F

from genrec.config import FullSoftmaxConfig
from genrec.losses.build import build_loss
from genrec.models.item_table import ItemTable

NUM_ITEMS, DIM, ROWS = 300, 8, 20


@pytest.mark.parametrize("max_logits_bytes", [2**16, 2**26])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_cross_entropy_with_smoothed_labels(max_logits_bytes: int, weighted: bool) -> None:
    torch.manual_seed(0)
    smoothing = 0.1
    config = FullSoftmaxConfig(
        name="full-softmax", label_smoothing=smoothing, temperature=0.5, max_logits_bytes=max_logits_bytes
    )
    loss = build_loss(config)
    table = ItemTable(NUM_ITEMS, DIM, std=1.0).double()
    hidden = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, NUM_ITEMS + 1, (ROWS,))
    weights = torch.rand(ROWS) if weighted else None
    ours = loss(hidden, targets, table, None, weights)
    logits = hidden @ table.weight[1:].T / 0.5
    losses = F.cross_entropy(logits, targets - 1, label_smoothing=smoothing, reduction="none")
    theirs = (losses if weights is None else losses * weights).sum()
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, [hidden, table.weight]),
        torch.autograd.grad(theirs, [hidden, table.weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
