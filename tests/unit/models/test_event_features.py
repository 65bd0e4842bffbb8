"""Actions, item types and times as inputs: looked up by the right codes, blind to the future, off by default."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_reference import HSTU_, NUM_ITEMS, SASREC, random_batch

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import Batch
from genrec.data.item_types import item_type_codes
from genrec.errors import ConfigError, DataError
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.event_features import NUM_GAP_BUCKETS, gap_buckets

ALL: dict[str, Any] = {"actions": True, "item_types": True, "time_features": ["gap", "hour", "weekday"]}
TYPES = np.arange(NUM_ITEMS + 1, dtype=np.uint8) % 4


def experiment(inputs: dict[str, Any], model: dict[str, Any] = SASREC) -> ExperimentConfig:
    values = {
        "name": "test",
        "data": {"source": {"name": "synthetic"}, "prepared": "unused"},
        "sequence": {"max_length": 80},
        "inputs": inputs,
        "model": model,
        "loss": {"name": "full-softmax"},
        "train": {"max_steps": 1},
    }
    return config_from_dict(values)


def build(inputs: dict[str, Any], model: dict[str, Any] = SASREC) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(experiment(inputs, model), NUM_ITEMS, TYPES).double().eval()


def batch_with_actions() -> Batch:
    batch = random_batch()
    return dataclasses.replace(batch, actions=torch.randint(0, 4, batch.items.shape))


def test_off_by_default() -> None:
    batch = batch_with_actions()
    plain = build({})
    without = dataclasses.replace(batch, actions=torch.zeros_like(batch.actions), times=batch.times + 12_345)
    assert torch.equal(plain.encode(batch), plain.encode(without))
    assert not any("features" in name for name, _ in plain.named_parameters())


@pytest.mark.parametrize("model", [SASREC, HSTU_ | {"time_bias": False}], ids=["sasrec", "hstu"])
@pytest.mark.parametrize(
    ("inputs", "field", "shift"),
    [
        ({"actions": True}, "actions", 3),
        ({"time_features": ["gap"]}, "times", 2**34),
        ({"time_features": ["hour"]}, "times", 7_200),
    ],
    ids=["actions", "gap", "hour"],
)
def test_an_input_is_read_and_only_from_its_event_on(
    model: dict[str, Any], inputs: Any, field: str, shift: int
) -> None:
    batch = random_batch((70, 5))
    network = build(inputs, model)
    value = getattr(batch, field).clone()
    value[40:70] += shift
    same = (network.encode(batch) == network.encode(dataclasses.replace(batch, **{field: value}))).all(dim=1)
    assert same[:40].all()
    assert same[70:].all()
    assert not same[40]


def test_sums_the_named_vectors() -> None:
    batch = batch_with_actions()
    features = build(ALL).input.features  # type: ignore[union-attr]
    from genrec.models.jagged import jagged_layout

    layout = jagged_layout(batch.offsets, 1)
    tables = {name: table.weight for name, table in features.tables.items()}  # type: ignore[union-attr]
    assert set(tables) == {"action", "item_type", "gap", "hour", "weekday"}
    summed = features(batch, layout)  # type: ignore[operator]
    for token in (0, 3, 4, 50, batch.num_tokens - 1):
        moment = np.datetime64(int(batch.times[token]), "s")
        first = token in batch.offsets.tolist()
        gap = 0 if first else int(batch.times[token] - batch.times[token - 1])
        expected = (
            tables["action"][batch.actions[token]]
            + tables["item_type"][int(TYPES[batch.items[token]])]
            + tables["gap"][0 if first else (gap + 1).bit_length()]
            + tables["hour"][moment.astype("datetime64[h]").astype(int) % 24]
            + tables["weekday"][moment.item().weekday()]
        )
        torch.testing.assert_close(summed[token], expected)


def test_gap_buckets() -> None:
    times = torch.tensor([5, 5, 6, 8, 11, 2**40, 7, 7 + 2**62])
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    assert gap_buckets(times, positions).tolist() == [0, 1, 2, 2, 3, NUM_GAP_BUCKETS - 1, 0, NUM_GAP_BUCKETS - 1]


def test_every_weight_learns() -> None:
    batch = batch_with_actions()
    network = build(ALL)
    network(batch).loss_sum.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if "features" in name}
    assert len(gradients) == 5
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def test_type_codes_follow_the_item_table() -> None:
    items = pa.table({"index": [2, 1, 3, 4], "type": ["episode", "track", None, "episode"]})
    assert item_type_codes(items).tolist() == [0, 1, 2, 0, 2]
    grown = pa.concat_tables([items, pa.table({"index": [5], "type": ["audiobook"]})])
    assert item_type_codes(grown).tolist() == [0, 1, 2, 0, 2, 3]


def test_too_many_types() -> None:
    items = pa.table({"index": list(range(1, 301)), "type": [str(i) for i in range(300)]})
    with pytest.raises(DataError, match="300 types, at most 255"):
        item_type_codes(items)


def test_types_are_asked_for_and_missing() -> None:
    with pytest.raises(ConfigError, match=r"inputs.item_types=true needs item types"):
        build_model(experiment({"item_types": True}), NUM_ITEMS)


def test_unknown_time_feature() -> None:
    with pytest.raises(ConfigError, match="time_features"):
        experiment({"time_features": ["minute"]})
