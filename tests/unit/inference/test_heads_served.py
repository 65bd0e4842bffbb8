"""Actions reach a served model, and its heads say what they expect of an item: in Python and for everyone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from prepared_sets import set_actions

from genrec.config import ExperimentConfig
from genrec.data.batch import batch_from_arrays
from genrec.data.schema import ITEMS_FILE
from genrec.data.sequence_files import read_row_group
from genrec.errors import ConfigError, DataError
from genrec.inference import batch
from genrec.inference.export import write_export
from genrec.inference.recommender import Recommender
from genrec.models.base import SequenceModel
from genrec.models.build import build_model

NUM_ITEMS = 12
ACTIONS = ("stream", "skip", "save")
SEQUENCES = [[1, 2, 3], [4, 5], [9, 8, 7, 6]]
CODES = [[1, 2, 3], [2, 2], [3, 1, 1, 2]]


@pytest.fixture
def config(tmp_path: Path, write_prepared, make_config) -> ExperimentConfig:
    prepared = set_actions(write_prepared(tmp_path / "set", SEQUENCES, num_items=NUM_ITEMS), CODES, ACTIONS)
    return make_config(prepared, "inputs.actions=true", "heads={action: {weight: 0.3}, dwell: {weight: 0.2}}")


@pytest.fixture
def model(config: ExperimentConfig) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(config, NUM_ITEMS, num_actions=len(ACTIONS)).eval()


@pytest.fixture
def recommender(tmp_path: Path, config: ExperimentConfig, model: SequenceModel) -> Recommender:
    said = {"step": 1, "actions": ACTIONS}
    write_export(tmp_path / "export", model.state_dict(), config, Path(config.data.prepared) / ITEMS_FILE, said)
    return Recommender.load(tmp_path / "export")


def test_what_was_done_with_an_item_changes_what_comes_next(recommender: Recommender) -> None:
    def scores(actions: list[str | None], history: tuple[int, ...] = (10, 20)) -> dict[int | str, float]:
        return dict(recommender.recommend(history, NUM_ITEMS - 2, actions=actions, skip_unknown=True))

    streamed = scores(["stream", "stream"])
    assert scores(["stream", "skip"]) != pytest.approx(streamed, rel=1e-2)
    assert scores([None, None]) != pytest.approx(streamed, rel=1e-2)
    assert scores(["stream", "save", "stream"], (10, 11, 20)) == pytest.approx(streamed, rel=1e-5, abs=1e-6)
    many = recommender.recommend_many([[10, 20]] * 2, NUM_ITEMS - 2, actions=[[None, None], ["stream", "stream"]])
    assert dict(many[1]) == pytest.approx(streamed, rel=1e-5, abs=1e-6)


def test_a_model_that_reads_actions_does_not_answer_without_them(recommender: Recommender) -> None:
    with pytest.raises(DataError, match=r"no actions were given; pass actions=\[...\], one of stream, skip, save"):
        recommender.recommend([10, 20])
    with pytest.raises(DataError, match="2 items and 1 actions"):
        recommender.recommend([10, 20], actions=["skip"])
    with pytest.raises(DataError, match="2 histories have 1 lists of actions"):
        recommender.recommend_many([[10], [20]], actions=[["skip"]])
    with pytest.raises(DataError, match="History 0 has the action 'like', which the log did not have"):
        recommender.recommend([10], actions=["like"])


def test_expectations_are_those_of_the_heads(recommender: Recommender, model: SequenceModel) -> None:
    found = recommender.expect([10, 20], [30, 90], actions=["stream", "skip"])
    window = batch_from_arrays(
        np.array([1, 2]),
        np.array([0, 2]),
        times=np.array([0, 1]),
        target_times=np.array([1, 2]),
        actions=np.array([1, 2]),
    )
    assert model.heads is not None and model.heads.action is not None and model.heads.dwell is not None
    with torch.no_grad():
        hidden = model.last_hidden(window).expand(2, -1)
        x = model.heads.inputs(hidden, torch.tensor([3, 9]), model.item_table)
        shares, seconds = model.heads.action(x).exp(), torch.expm1(model.heads.dwell(x))
    assert [expected.item for expected in found] == [30, 90]
    for place, expected in enumerate(found):
        assert expected.actions == pytest.approx(dict(zip(ACTIONS, shares[place].tolist(), strict=True)), rel=1e-5)
        assert expected.seconds == pytest.approx(float(seconds[place]), rel=1e-5)
    assert found[0].actions != found[1].actions
    with pytest.raises(DataError, match="items hold 1 that the model does not know, 11"):
        recommender.expect([10], [20, 11], actions=["skip"])


def test_a_model_without_heads_expects_nothing(config: ExperimentConfig, make_config) -> None:
    plain = make_config(Path(config.data.prepared))
    items = pq.read_table(Path(config.data.prepared) / ITEMS_FILE)
    with pytest.raises(ConfigError, match="no heads; train one with heads"):
        Recommender(build_model(plain, NUM_ITEMS), plain, items).expect([10], [20])


def test_everyone_gets_the_expectations_beside_the_items(
    recommender: Recommender, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Path(config.data.prepared)
    users = pq.read_table(prepared / "users.parquet")["user"].combine_chunks()
    monkeypatch.setattr(batch.ray, "get", lambda shared: shared)
    monkeypatch.setattr(batch.torch.cuda, "is_available", lambda: False)
    top_k = batch._TopK(shared=[(recommender, users)], k=NUM_ITEMS, exclude_seen=True, now=None, has_times=False)
    columns = ["user", "items", "times", "actions"]
    table = top_k(read_row_group(prepared, "sequences/part-00000.parquet", 0, columns).combine_chunks())
    assert table.column_names == ["user", "items", "scores", "p_stream", "p_skip", "p_save", "seconds"]
    for row, items, codes in zip(table.to_pylist(), SEQUENCES, CODES, strict=True):
        history, actions = [10 * item for item in items], [ACTIONS[code - 1] for code in codes]
        expected = recommender.expect(history, row["items"], actions=actions)
        assert len(expected) == NUM_ITEMS - len(items)
        assert row["seconds"] == pytest.approx([found.seconds for found in expected], rel=1e-5)
        for name in ACTIONS:
            assert row[f"p_{name}"] == pytest.approx([(found.actions or {})[name] for found in expected], rel=1e-5)
