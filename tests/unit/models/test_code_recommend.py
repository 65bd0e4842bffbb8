"""Models that write codes recommend by beam search: with a wide beam the best of all items, whatever is filtered."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from code_catalogue import random_ids

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.schema import ITEMS_FILE
from genrec.errors import ConfigError
from genrec.inference.recommender import Recommender
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel

NUM_ITEMS, SIZES = 40, (4, 5, 3)
IDS = random_ids(NUM_ITEMS, SIZES, seed=0)
LENGTHS = (3, 1, 7, 5)
MODELS = {
    "codes": "{name: code-decoder, dim: 8, num_layers: 1, num_heads: 2}",
    "items": "{name: code-decoder, dim: 8, num_layers: 1, num_heads: 2, history: items, item_ids: true}",
    "tiger": "{name: tiger, dim: 8, num_layers: 1, num_heads: 2, head_dim: 4, feed_forward_dim: 16}",
}


@pytest.fixture
def config_of(tmp_path: Path, write_prepared, make_config) -> Callable[..., ExperimentConfig]:
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3]], num_items=NUM_ITEMS)
    table = pq.read_table(prepared / ITEMS_FILE)
    types = ["track" if index % 4 else "podcast" for index in table["index"].to_pylist()]
    place = table.schema.get_field_index("type")
    pq.write_table(table.set_column(place, table.schema.field(place), [types]), prepared / ITEMS_FILE)
    IDS.save(tmp_path / "map")

    def make(name: str, *overrides: str) -> ExperimentConfig:
        of_codes = (f"model={MODELS[name]}", "loss={name: full-softmax}", f"semantic_ids.path={tmp_path / 'map'}")
        return make_config(prepared, *of_codes, *overrides)

    return make


def histories() -> Batch:
    generator = np.random.default_rng(1)
    items = generator.integers(1, NUM_ITEMS + 1, sum(LENGTHS))
    offsets = np.cumsum([0, *LENGTHS])
    targets = np.append(items[1:], 1)
    targets[offsets[1:] - 1] = -1
    return batch_from_arrays(items, offsets, targets=targets)


def trained(config: ExperimentConfig) -> CodeModel:
    torch.manual_seed(0)
    model = build_model(config, NUM_ITEMS, semantic_ids=IDS)
    assert isinstance(model, CodeModel)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        model(histories()).loss_sum.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_wide_beam_finds_what_scoring_every_item_finds(name: str, config_of, monkeypatch) -> None:
    with torch.enable_grad():
        model = trained(config_of(name, f"evaluation.beam_width={NUM_ITEMS}"))
    batch = histories()
    scores = model.scores_of_all(batch)
    seen = (torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)), batch.items)
    allowed = torch.arange(NUM_ITEMS + 1) % 3 == 1
    for exclude, some in ((None, None), (seen, None), (None, allowed), (seen, allowed)):
        expected = scores.clone()
        if exclude is not None:
            expected[exclude] = -float("inf")
        if some is not None:
            expected[:, ~some] = -float("inf")
        best = expected.topk(10, dim=1)
        items, values = model.recommend(batch, 10, exclude, allowed=some)
        assert torch.equal(items, best.indices)
        torch.testing.assert_close(values, best.values, rtol=0, atol=1e-5)
        monkeypatch.setattr("genrec.models.code_model.MAX_SCORED_BYTES", 1)  # one user at a time
        one_by_one = model.recommend(batch, 10, exclude, allowed=some)
        monkeypatch.undo()
        assert torch.equal(one_by_one[0], items)
        torch.testing.assert_close(one_by_one[1], values, rtol=0, atol=1e-5)


def test_exhaustive_decoding_and_its_limits(config_of) -> None:
    model = trained(config_of("codes", "evaluation.decoding=exhaustive"))
    with torch.no_grad():
        expected = model.scores_of_all(histories()).topk(5, dim=1)
        items, values = model.recommend(histories(), 5)
        allowed = torch.zeros(NUM_ITEMS + 1, dtype=torch.bool)
        allowed[7] = True
        assert model.recommend(histories(), 3, allowed=allowed)[0].tolist() == [[7, 0, 0]] * 4
    assert torch.equal(items, expected.indices)
    assert torch.equal(values, expected.values)
    with pytest.raises(ConfigError, match=r"set evaluation\.decoding to beam"):
        model.recommend(histories(), 5, max_per_prefix=1)
    with pytest.raises(ConfigError, match=r"set evaluation\.decoding to beam"):
        model.check_max_per_prefix(1)


def test_a_recommender_limited_to_a_type(config_of) -> None:
    config = config_of("items")
    items = pq.read_table(Path(config.data.prepared) / ITEMS_FILE)
    whole = Recommender(trained(config), config, items)
    podcasts = whole.limited(["podcast"])
    found = podcasts.recommend([10, 40], k=20)  # original ids are 10 * item index; item 4 is a podcast
    assert {pair.item for pair in found} == {10 * item for item in range(8, NUM_ITEMS + 1, 4)}
    assert len(whole.recommend([10, 40], k=20)) == 20, "the recommender that it was made from is as before"
    of_codes = [IDS.codes[pair.item // 10, 0] for pair in whole.limited(max_per_prefix=2).recommend([10], k=20)]
    assert np.bincount(of_codes).max() == 2
    with pytest.raises(ConfigError, match=r"max_per_prefix \(0\) must be at least 1"):
        whole.limited(max_per_prefix=0)
    with pytest.raises(ConfigError, match="No item has the type 'film'; the types are podcast, track"):
        whole.limited(["podcast", "film"])
