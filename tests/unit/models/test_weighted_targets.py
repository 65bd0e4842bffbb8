"""A model's loss with weights of targets: what each target counts does not depend on how sequences are packed."""

import dataclasses

import pytest
import torch
from model_reference import ESASREC, HSTU_, LENGTHS, NUM_ITEMS, experiment, random_batch, select_sequences

from genrec.models.build import build_model

FULL = {"name": "full-softmax"}


@pytest.mark.parametrize("family", [ESASREC, HSTU_], ids=["esasrec", "hstu"])
def test_packed_is_one_by_one(family: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model(experiment(family, FULL), NUM_ITEMS).double().eval()
    batch = random_batch()
    weights = torch.rand(batch.num_tokens) * 3
    targets = torch.where(torch.rand(batch.num_tokens) < 0.3, -1, batch.targets)
    batch = dataclasses.replace(batch, targets=targets, target_weights=weights)
    packed = model(batch)
    singles = []
    for index in range(len(LENGTHS)):
        single, tokens = select_sequences(batch, [index])
        singles.append(model(dataclasses.replace(single, target_weights=weights[tokens])))
    torch.testing.assert_close(sum(s.loss_sum for s in singles), packed.loss_sum, rtol=1e-10, atol=0)
    assert sum(s.num_targets for s in singles) == packed.num_targets == int((targets >= 0).sum())


def test_a_weight_scales_its_own_target() -> None:
    model = build_model(experiment(ESASREC, FULL), NUM_ITEMS).double().eval()
    batch = random_batch()
    place = int((batch.targets >= 0).nonzero()[3])
    alone = torch.full_like(batch.targets, -1)
    alone[place] = batch.targets[place]
    weights = torch.ones(batch.num_tokens)
    weights[place] = 3.5
    plain = model(batch).loss_sum
    of_one = model(dataclasses.replace(batch, targets=alone)).loss_sum
    weighted = model(dataclasses.replace(batch, target_weights=weights)).loss_sum
    torch.testing.assert_close(weighted, plain + 2.5 * of_one, rtol=1e-10, atol=0)
