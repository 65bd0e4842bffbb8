"""TIGER against a transcription with loops, and its published size."""

from itertools import pairwise

import pytest
import torch
from code_reference import code_experiment, code_model, literal_bucket, literal_tiger, one_target
from model_reference import random_batch

from genrec.models.build import build_model
from genrec.models.code_t5 import buckets_of
from genrec.models.tiger import Tiger
from genrec.semantic.run_map import made_up_ids


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_those_of_t5(both_ways: bool) -> None:
    distances = torch.arange(-300, 301)
    expected = [literal_bucket(distance, both_ways=both_ways) for distance in distances.tolist()]
    assert buckets_of(distances, both_ways=both_ways).tolist() == expected
    assert set(expected) == set(range(32)) - ({16} if both_ways else set())  # a future at distance 0 does not exist


@pytest.mark.parametrize("variant", ["tiger", "tiger-short"])
def test_equals_the_transcription(variant: str) -> None:
    model = code_model(variant).double().eval()
    assert isinstance(model, Tiger)
    batch = random_batch((1, 7))
    for position in range(batch.num_tokens):
        sequence = int(torch.searchsorted(batch.offsets, position, right=True)) - 1
        items = batch.items[batch.offsets[sequence] : position + 1].tolist()
        literal = literal_tiger(model, items, int(batch.targets[position]))
        torch.testing.assert_close(-model(one_target(batch, position)).loss_sum, literal.sum(), atol=1e-9, rtol=1e-9)


def test_gradients_equal_those_of_the_transcription() -> None:
    model = code_model("tiger").double().eval()
    assert isinstance(model, Tiger)
    batch = random_batch((3, 5))
    weights = list(model.parameters())
    ours = torch.autograd.grad(model(batch).loss_sum, weights)
    firsts = batch.offsets.tolist()
    literal = torch.stack(
        [
            -literal_tiger(model, batch.items[first : position + 1].tolist(), int(batch.targets[position])).sum()
            for first, last in pairwise(firsts)
            for position in range(first, last)
        ]
    ).sum()
    theirs = torch.autograd.grad(literal, weights)
    for (name, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_an_event_before_the_newest_ones_is_not_read() -> None:
    model = code_model("tiger-short").double().eval()
    batch = random_batch((9,))
    before = model(one_target(batch, 8)).loss_sum
    batch.items[:4] = batch.items[:4] % 50 + 1  # the five newest stay
    torch.testing.assert_close(model(one_target(batch, 8)).loss_sum, before, atol=0, rtol=0)
    batch.items[4] = batch.items[4] % 50 + 1
    assert not torch.allclose(model(one_target(batch, 8)).loss_sum, before)


def test_the_published_size() -> None:
    """4 levels of 256 codes: two stacks of four layers, 6 heads of 64, feed-forward 1,024 (section 4 of the paper)."""
    ids = made_up_ids(12_101, (256, 256, 256, 256))
    with torch.device("meta"):
        model = build_model(code_experiment({"name": "tiger"}), ids.num_items, semantic_ids=ids)
    attention, feed_forward = 4 * 128 * 384, 2 * 128 * 1024
    encoder = 4 * (attention + feed_forward + 2 * 128)
    decoder = 4 * (2 * attention + feed_forward + 3 * 128)
    rest = (1024 + 2) * 128 + 2 * 32 * 6 + 2 * 128
    assert sum(weight.numel() for weight in model.parameters()) == encoder + decoder + rest
