"""Recommendations in original ids: what is scored, what is left out, what is refused."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from whole_number_model import WholeNumberModel

from genrec.data.batch import batch_from_arrays
from genrec.data.schema import ITEMS_FILE
from genrec.errors import ConfigError, DataError, RunError
from genrec.inference.export import write_export
from genrec.inference.recommender import Recommendation, Recommender
from genrec.models.build import build_model

NUM_ITEMS = 12
MODELS = {
    "sasrec": "{name: sasrec, dim: 8, num_layers: 1, num_heads: 1}",
    "esasrec": "{name: esasrec, dim: 8, num_layers: 1, num_heads: 1}",
    "hstu": "{name: hstu, dim: 8, query_dim: 8, value_dim: 8, time_bias: false}",
    "decoder": "{name: decoder, dim: 8, num_layers: 1, num_heads: 2}",
}


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    return write_prepared(tmp_path / "set", [[1, 2, 3]], num_items=NUM_ITEMS)


@pytest.fixture
def recommender(prepared: Path, make_config) -> Recommender:
    return Recommender(WholeNumberModel(NUM_ITEMS), make_config(prepared), pq.read_table(prepared / ITEMS_FILE))


def expected_scores(history: list[int], max_length: int = 8) -> list[float]:
    """Scores of every item index for a history of item indices."""
    model = WholeNumberModel(NUM_ITEMS).eval()
    window = np.array(history[-max_length:])
    with torch.no_grad():
        return model.item_table.scores(model.last_hidden(batch_from_arrays(window, np.array([0, len(window)]))))[
            0
        ].tolist()


@pytest.mark.parametrize("history", [[5], [1, 2, 3, 4], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_best_items_come_back_best_first(recommender: Recommender, history: list[int], exclude_seen: bool) -> None:
    scores = expected_scores(history)
    left = set(range(1, NUM_ITEMS + 1)) - (set(history) if exclude_seen else set())
    found = recommender.recommend([10 * item for item in history], 4, exclude_seen=exclude_seen)
    assert [pair.score for pair in found] == sorted((scores[item] for item in left), reverse=True)[:4]
    assert all(pair.score == scores[pair.item // 10] and pair.item // 10 in left for pair in found)
    assert len({pair.item for pair in found}) == 4


def test_fewer_come_back_when_fewer_are_left(recommender: Recommender) -> None:
    found = recommender.recommend([10 * item for item in range(1, NUM_ITEMS - 1)], k=NUM_ITEMS)
    assert {pair.item for pair in found} == {10 * (NUM_ITEMS - 1), 10 * NUM_ITEMS}
    assert recommender.recommend([10 * item for item in range(1, NUM_ITEMS + 1)], k=3) == []


def test_many_histories_are_each_as_if_alone(recommender: Recommender, prepared: Path, make_config) -> None:
    rng = np.random.default_rng(0)
    histories = [(10 * rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 15))).tolist() for _ in range(23)]
    small = make_config(prepared, "evaluation.users_per_batch=4", "batch.tokens_per_step=6")
    many = Recommender(WholeNumberModel(NUM_ITEMS), small, pq.read_table(prepared / ITEMS_FILE))
    assert many.recommend_many(histories, 3) == [recommender.recommend(history, 3) for history in histories]
    assert many.recommend_many([], 3) == []


def test_string_ids_come_back_as_strings(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "strings", [[1, 2, 3]], string_ids=True)
    recommender = Recommender(WholeNumberModel(3), make_config(folder), pq.read_table(folder / ITEMS_FILE))
    found = recommender.recommend(["item-10", "item-30"], 2)
    assert [type(pair) for pair in found] == [Recommendation]
    assert found[0].item == "item-20"


@pytest.mark.parametrize("k", [0, -1, NUM_ITEMS + 1])
def test_k_beyond_the_catalogue_is_refused(recommender: Recommender, k: int) -> None:
    with pytest.raises(ConfigError, match=rf"k \({k}\) must be between 1 and the catalogue's 12 items"):
        recommender.recommend([10], k)


def test_unknown_items_are_refused_or_skipped(recommender: Recommender) -> None:
    with pytest.raises(DataError, match=r"1 items that the model does not know, 11 for one .*int64 like 10"):
        recommender.recommend([10, 11, 20], 3)
    assert recommender.recommend([10, 11, 20], 3, skip_unknown=True) == recommender.recommend([10, 20], 3)
    with pytest.raises(DataError, match="no item that the model knows"):
        recommender.recommend([11], 3, skip_unknown=True)
    with pytest.raises(DataError, match="no item that the model knows"):
        recommender.recommend([], 3)


def test_times_must_fit_the_history(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="2 items and 1 times"):
        recommender.recommend([10, 20], times=[5])
    with pytest.raises(DataError, match="go backwards"):
        recommender.recommend([10, 20], times=[5, 4])
    with pytest.raises(DataError, match="2 histories have 1 lists of times"):
        recommender.recommend_many([[10], [20]], times=[[1]])
    with pytest.raises(ConfigError, match=r"now \(3\) is before"):
        recommender.recommend([10, 20], times=[4, 5], now=3)


def test_the_query_time_reaches_the_model(prepared: Path, make_config) -> None:
    items = pq.read_table(prepared / ITEMS_FILE)
    model = WholeNumberModel(NUM_ITEMS, uses_query_time=True)
    recommender = Recommender(model, make_config(prepared), items)
    at_once = recommender.recommend([10, 20], times=[70, 71])
    assert recommender.recommend([10, 20], times=[70, 71], now=71) == at_once
    assert recommender.recommend([10, 20], times=[70, 71], now=75) != at_once
    with pytest.raises(DataError, match="no times were given"):
        recommender.recommend([10, 20])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model={name: hstu, dim: 8, query_dim: 8, value_dim: 8, query_time: false}"],
        *([f"model={model}", "inputs.time_features=[gap]"] for model in MODELS.values()),
    ],
)
def test_a_model_that_reads_times_does_not_answer_without_them(
    prepared: Path, make_config, overrides: list[str]
) -> None:
    config = make_config(prepared, *overrides)
    model = build_model(config, NUM_ITEMS)
    assert not model.uses_query_time
    recommender = Recommender(model, config, pq.read_table(prepared / ITEMS_FILE))
    with pytest.raises(DataError, match="no times were given"):
        recommender.recommend([10, 20])
    asked = [recommender.recommend([10, 20], times=[70, 71], now=now) for now in (71, 10**6)]
    assert asked[0] == asked[1]


def test_nan_weights_are_refused(tmp_path: Path, prepared: Path, make_config) -> None:
    config = make_config(prepared)
    state_dict = build_model(config, NUM_ITEMS).state_dict()
    next(iter(state_dict.values())).fill_(float("nan"))
    write_export(tmp_path / "export", state_dict, config, prepared / ITEMS_FILE, {"step": 1})
    with pytest.raises(DataError, match="hold NaN"):
        Recommender.load(tmp_path / "export")


def test_nan_scores_are_an_error(recommender: Recommender, prepared: Path, make_config) -> None:
    model = WholeNumberModel(NUM_ITEMS)
    with torch.no_grad():
        model.item_table.weight[3, 0] = float("nan")
    broken = Recommender(model, make_config(prepared), pq.read_table(prepared / ITEMS_FILE))
    with pytest.raises(RunError, match="NaN"):
        broken.recommend([10, 20], 3)


@pytest.mark.parametrize("model_name", MODELS)
def test_a_run_and_its_export_load_alike(tmp_path: Path, prepared: Path, make_config, model_name: str) -> None:
    config = make_config(prepared, f"model={MODELS[model_name]}")
    torch.manual_seed(0)
    model = build_model(config, NUM_ITEMS)
    run = tmp_path / "run"
    write_export(run / "export", model.state_dict(), config, prepared / ITEMS_FILE, {"step": 1})
    direct = Recommender(model, config, pq.read_table(prepared / ITEMS_FILE)).recommend([10, 30, 50], 5)
    assert len(direct) == 5
    assert Recommender.load(run).recommend([10, 30, 50], 5) == direct
    assert Recommender.load(str(run / "export")).recommend([10, 30, 50], 5) == direct


def test_weights_of_another_model_are_refused(tmp_path: Path, prepared: Path, make_config) -> None:
    narrow, wide = make_config(prepared), make_config(prepared, "model.dim=16")
    state_dict = build_model(narrow, NUM_ITEMS).state_dict()
    write_export(tmp_path / "export", state_dict, wide, prepared / ITEMS_FILE, {"step": 1})
    with pytest.raises(DataError, match="not of the model in its config"):
        Recommender.load(tmp_path / "export")


def test_a_run_without_an_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an export"):
        Recommender.load(tmp_path)
