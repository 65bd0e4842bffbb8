"""The item table: padding never learns, scores are fp32 for every item, and ids beyond 2^24 keep their row."""

import pytest
import torch
from model_reference import NUM_ITEMS, SASREC, experiment, random_batch

from genrec.data.batch import Batch
from genrec.errors import ConfigError
from genrec.losses.negatives import Negatives, NegativeSampler
from genrec.losses.sampled import SampledSoftmax
from genrec.losses.temperature import Temperature
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.item_table import ItemTable


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(0)
    return build_model(experiment(SASREC), NUM_ITEMS).eval()


def test_padding_starts_at_zero_and_never_learns(model: SequenceModel) -> None:
    model(random_batch()).loss_sum.backward()
    weight = model.item_table.weight
    assert weight[0].abs().max() == 0
    assert weight.grad is not None
    assert weight.grad[0].abs().max() == 0
    assert (weight.grad[1:].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_scores_of_every_item(l2_normalize: bool) -> None:
    table = ItemTable(9, 4, l2_normalize=l2_normalize)
    hidden = torch.randn(3, 4)
    for item in range(1, 10):
        vector = table.embed(torch.tensor([item]))[0]
        expected = torch.cosine_similarity(hidden, vector.expand(3, 4)) if l2_normalize else hidden @ vector
        torch.testing.assert_close(table.scores(hidden)[:, item], expected)


def test_scores_stay_fp32_under_autocast() -> None:
    table, hidden = ItemTable(9, 4), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = table.scores(hidden)
        assert not torch.equal(scores, (hidden @ table.weight.T).float())  # here a product is bf16
    assert torch.equal(scores, table.scores(hidden))


def test_recommend_gives_the_best_items_without_the_excluded(model: SequenceModel) -> None:
    batch = random_batch((3, 6))
    with torch.no_grad():
        scores = model.item_table.scores(model.last_hidden(batch))
        first = scores[:, 1:].argmax(dim=1) + 1
        items, values = model.recommend(batch, NUM_ITEMS)
        assert torch.equal(items[:, 0], first)
        assert torch.equal(items.sort().values, torch.arange(1, NUM_ITEMS + 1).expand(2, -1))
        assert (values.diff(dim=1) <= 0).all()
        kept, _ = model.recommend(batch, 5, exclude=(torch.tensor([0, 1]), first))
    assert torch.equal(kept, items[:, 1:6])


def test_more_recommendations_than_items_are_refused(model: SequenceModel) -> None:
    with pytest.raises(ConfigError, match=r"k \(51\) is larger than the catalogue of 50 items"):
        model.recommend(random_batch((3,)), 51)


def test_ids_beyond_2_to_the_24_keep_their_row() -> None:
    num_items = 2**24 + 8  # fp32 cannot tell 2^24 and 2^24 + 1 apart
    with torch.device("meta"):
        table = ItemTable(num_items, 1)
    table = table.to_empty(device="cpu")
    with torch.no_grad():
        table.weight.zero_()
        table.weight[2**24 :, 0] = torch.arange(1.0, 10.0)
    items = torch.arange(2**24, 2**24 + 9)
    batch = Batch(items, items, items, items, items, torch.tensor([0, 9]))
    assert table.embed(batch.items)[:, 0].tolist() == list(range(1, 10))
    loss = SampledSoftmax(Temperature(1.0), NegativeSampler(num_uniform=2), max_logits_bytes=2**16)
    negatives = Negatives(torch.tensor([5, 2**24 + 1]), None)
    losses = [
        loss.with_negatives(torch.ones(1, 1), torch.tensor([target]), negatives, table).item()
        for target in (2**24, 2**24 + 1)
    ]
    scores = torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, -torch.inf]])  # target, then both negatives; its own is masked
    expected = -scores.log_softmax(1)[:, 0]
    assert losses == pytest.approx(expected.tolist(), rel=1e-6)
