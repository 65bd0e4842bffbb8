"""The fused table is its formula, in look-ups, scores and losses; vectors are frozen, and cold ids are nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_reference import SASREC, experiment, random_batch
from torch import Tensor

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.item_vectors import ItemVectors
from genrec.errors import ConfigError
from genrec.losses.build import build_loss
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.fused_table import FusedItemTable, settle, settled_rows
from genrec.models.item_table import ItemTable

NUM_ITEMS, VECTOR_DIM = 50, 5
WITHOUT_VECTOR = [0, 4, 9, 50]
UNTRAINED = [0, 9, 10, 49]


def some_vectors(seed: int = 0) -> ItemVectors:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS + 1, VECTOR_DIM)).astype(np.float32)
    vectors[WITHOUT_VECTOR] = 0
    is_trained = np.ones(NUM_ITEMS + 1, dtype=np.bool_)
    is_trained[UNTRAINED] = False
    return ItemVectors(vectors, is_trained)


def config_of(
    loss: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **fusing: Any
) -> ExperimentConfig:
    values = experiment(model or SASREC, loss).model_dump(mode="json")
    values["data"]["item_vectors"] = {"path": "unused"}
    values["inputs"]["item_vectors"] = fusing
    return config_from_dict(values)


def build(config: ExperimentConfig) -> tuple[SequenceModel, FusedItemTable]:
    """A model whose weights are all large enough to be seen."""
    torch.manual_seed(0)
    model = build_model(config, NUM_ITEMS, item_vectors=some_vectors())
    table = model.item_table
    assert isinstance(table, FusedItemTable)
    with torch.no_grad():
        for weight in (table.weight, table.projection, table.missing):
            weight.normal_(std=0.5)
    return model, table


def by_hand(table: FusedItemTable, ids: bool = True) -> Tensor:
    """e = s E + W x + a u, item by item, in fp64."""
    rows = [torch.zeros(table.dim, dtype=torch.float64)]
    vectors = torch.from_numpy(some_vectors().vectors).double()
    for item in range(1, NUM_ITEMS + 1):
        row = torch.zeros(table.dim, dtype=torch.float64)
        if item not in UNTRAINED and (ids or item in WITHOUT_VECTOR):
            row += table.weight[item].double()
        for column in range(VECTOR_DIM):
            row += table.projection[:, column].double() * vectors[item, column]
        if item in WITHOUT_VECTOR:
            row += table.missing.double()
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("l2_normalize", [False, True])
def test_look_ups_and_scores_are_the_formula(ids: bool, l2_normalize: bool) -> None:
    model, table = build(config_of(model=SASREC | {"l2_normalize": l2_normalize}, ids=ids, id_dropout=0.0))
    expected = by_hand(table, ids)
    items = torch.tensor([9, 3, 0, 50, 3, 10, 49, 1])
    hidden = torch.randn(4, table.dim)
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(table.embed(items).double(), expected[items], atol=1e-6, rtol=0)
        everything = table(lambda rows: rows)
        torch.testing.assert_close(everything.double(), expected, atol=1e-6, rtol=0)
        sides = [table.normalized(hidden.double()), table.normalized(expected)]
        torch.testing.assert_close(table.scores(hidden).double(), sides[0] @ sides[1].T, atol=1e-5, rtol=0)


LOSSES: list[dict[str, Any]] = [
    {"name": "full-softmax"},
    {"name": "sampled-softmax", "num_negatives": 20},
    {"name": "sampled-softmax", "num_negatives": 20, "per_position": True},
    {"name": "bce", "num_negatives": 20},
    {"name": "gbce", "num_negatives": 20, "calibration": 0.5, "per_position": True},
]


@pytest.mark.parametrize("num_train_items", [NUM_ITEMS, 48])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
def test_every_loss_is_that_of_a_plain_table_with_the_same_rows(loss: dict[str, Any], num_train_items: int) -> None:
    _, table = build(config_of(loss, id_dropout=0.0))
    table.double()
    table.num_train_items = num_train_items
    rows = table(lambda rows: rows)
    plain = ItemTable(NUM_ITEMS, table.dim).double()
    plain.weight.data.copy_(rows)
    plain.num_train_items = num_train_items
    hidden = torch.randn(70, table.dim, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, num_train_items + 1, (70,))
    measure = build_loss(config_of(loss).loss)

    def measured(used: ItemTable, weights: list[Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        value = measure(hidden, targets, used)
        return value, *torch.autograd.grad(value, [hidden, *weights])

    value, by_hidden, by_rows = measured(plain, [plain.weight])
    weights = [table.weight, table.projection, table.missing]
    found = measured(table, weights)
    expected = (value, by_hidden, *torch.autograd.grad(rows, weights, by_rows))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert found[2][UNTRAINED].abs().max() == 0


def test_ids_of_items_with_a_vector_are_dropped_in_training_alone() -> None:
    model, table = build(config_of(id_dropout=0.3))
    torch.manual_seed(2)
    with torch.no_grad():
        full = table.eval()(lambda rows: rows)
        assert torch.equal(full, table(lambda rows: rows))
        table.train()
        without = full - table.weight * torch.from_numpy(some_vectors().is_trained).unsqueeze(1)
        dropped = torch.zeros(NUM_ITEMS + 1)
        for _ in range(500):
            rows = table(lambda rows: rows)
            is_full = (rows - full).abs().amax(dim=1) < 1e-5
            assert (is_full | ((rows - without).abs().amax(dim=1) < 1e-5)).all()
            dropped += ~is_full
        may = np.setdiff1d(np.arange(NUM_ITEMS + 1), [*WITHOUT_VECTOR, *UNTRAINED])
        assert dropped[WITHOUT_VECTOR].sum() == dropped[UNTRAINED].sum() == 0
        assert (dropped[may] / 500 - 0.3).abs().max() < 0.09
        # One draw an item and use: an item that comes twice is the same item.
        looked_up = table.embed(torch.tensor([3, 7, 3, 3, 7]))
        assert torch.equal(looked_up[0], looked_up[2]) and torch.equal(looked_up[1], looked_up[4])
    assert model.training


@pytest.mark.parametrize("name", ["sasrec", "esasrec", "hstu", "decoder"])
def test_training_leaves_vectors_and_cold_ids_as_they_are(name: str) -> None:
    shape: dict[str, Any] = {"name": name, "dim": 12, "num_heads": 2, "num_layers": 1}
    model, table = build(config_of(model=shape))
    table.num_train_items = 48
    before = {key: value.clone() for key, value in [*model.named_parameters(), *model.named_buffers()]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    losses = []
    for seed in range(4):
        batch = random_batch((6, 9), num_items=48, seed=seed)
        optimizer.zero_grad()
        loss = model(batch).loss_sum
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert torch.equal(table.vectors, torch.from_numpy(some_vectors().vectors))
    assert torch.equal(table.weight[UNTRAINED], before["item_table.weight"][UNTRAINED])
    assert not torch.equal(table.weight[1], before["item_table.weight"][1])
    assert not torch.equal(table.projection, before["item_table.projection"])


def test_vectors_are_in_no_checkpoint() -> None:
    model, table = build(config_of())
    own = {name for name in model.state_dict() if name.startswith("item_table.")}
    assert own == {"item_table.weight", "item_table.projection", "item_table.missing"}
    assert {name for name, _ in model.named_parameters() if name.startswith("item_table.")} == own
    assert table.vectors.requires_grad is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_settled_model_recommends_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("genrec.models.fused_table._SETTLED_ROWS", 7)
    model, table = build(config_of(id_dropout=0.5))
    model = model.to(dtype).eval()
    batch = random_batch((5, 8, 2))
    with torch.no_grad():
        items, scores = model.recommend(batch, 10)
        table.train()  # settled rows are those of evaluation, whatever the mode
        settle(model)
        assert type(model.item_table) is ItemTable and model.item_table.num_items == NUM_ITEMS
        settled_items, settled_scores = model.recommend(batch, 10)
    assert torch.equal(items, settled_items)
    torch.testing.assert_close(scores, settled_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ids", [True, False])
def test_some_settled_rows_are_those_of_the_whole_table(ids: bool) -> None:
    config = config_of(ids=ids)
    model, table = build(config)
    fusing, whole = config.inputs.item_vectors, table.weight.detach()
    assert fusing is not None
    small = build_model(config, 0, item_vectors=ItemVectors(*(array[:1] for array in some_vectors())))
    small.load_state_dict({**model.state_dict(), "item_table.weight": whole[:1]})
    parts = [range(4), range(4, 5), range(5, 50), range(50, NUM_ITEMS + 1)]  # 4, 9 and 50 are first and without one
    found = torch.cat([settled_rows(small, whole, some_vectors(), fusing, part) for part in parts])
    torch.testing.assert_close(found, table.eval().settled(), atol=1e-6, rtol=1e-6)


def test_it_stays_in_full_precision_under_autocast() -> None:
    _, table = build(config_of(id_dropout=0.0))
    items = torch.tensor([1, 2, 9])
    expected = table.embed(items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(table.embed(items), expected)


def test_weights_may_be_bf16_beside_vectors_in_fp32() -> None:
    """As ZeRO-3 leaves them."""
    _, table = build(config_of(id_dropout=0.0))
    for weight in table.parameters():
        weight.data = weight.data.bfloat16()
    beside = table(lambda rows: rows)
    assert beside.dtype == torch.bfloat16 and table.vectors.dtype == torch.float32
    assert torch.equal(table.bfloat16()(lambda rows: rows), beside)


def test_a_plain_model_has_a_plain_table() -> None:
    model = build_model(experiment(SASREC), NUM_ITEMS, item_vectors=some_vectors())
    assert type(model.item_table) is ItemTable
    settle(model)
    assert type(model.item_table) is ItemTable


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: build_model(config_of(), NUM_ITEMS), r"inputs.item_vectors needs item vectors, and there are none"),
        (lambda: config_of(id_dropout=1.5), r"inputs.item_vectors.id_dropout"),
        (
            lambda: config_from_dict(
                experiment(SASREC).model_dump(mode="json") | {"inputs": {"item_vectors": {"ids": True}}}
            ),
            r"inputs.item_vectors needs vectors in the prepared set, and data.item_vectors is null; name their file",
        ),
    ],
)
def test_refused(broken: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        broken()
