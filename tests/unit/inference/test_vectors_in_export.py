"""An export is whole with the vectors of its items: it serves where the set is gone, or refuses in a sentence."""

import shutil
from pathlib import Path

import numpy as np
import prepared_sets
import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import batch_from_arrays
from genrec.data.item_vectors import vectors_for
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE
from genrec.errors import DataError
from genrec.inference.export import read_export, write_export
from genrec.inference.recommender import Recommender
from genrec.models.base import SequenceModel
from genrec.models.build import build_model

NUM_ITEMS = 20


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    """Items 16 to 20 are cold."""
    folder = write_prepared(tmp_path / "set", [list(range(1, 16))], num_items=NUM_ITEMS)
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS + 1, 4))
    vectors[0] = 0
    prepared_sets.give_vectors(folder, vectors)
    return folder


@pytest.fixture
def config(prepared: Path, make_config) -> ExperimentConfig:
    return make_config(prepared, *prepared_sets.WITH_VECTORS)


def export(config: ExperimentConfig, folder: Path) -> SequenceModel:
    torch.manual_seed(3)
    model = build_model(config, NUM_ITEMS, item_vectors=vectors_for(config, config.data.prepared)).eval()
    write_export(folder, model.state_dict(), config, Path(config.data.prepared) / ITEMS_FILE, {"step": 1})
    return model


def test_it_serves_without_the_prepared_set(tmp_path: Path, prepared: Path, config: ExperimentConfig) -> None:
    model = export(config, tmp_path / "export")
    assert "item_table.vectors" not in read_export(tmp_path / "export").state_dict
    shutil.rmtree(prepared)
    recommender = Recommender.load(tmp_path / "export")
    found = recommender.recommend([10, 200, 180], k=NUM_ITEMS, exclude_seen=False)
    batch = torch.tensor([1, 20, 18])
    with torch.no_grad():
        hidden = model.last_hidden(batch_from_arrays(batch.numpy(), np.array([0, 3])))
        scores = model.item_table.scores(hidden)[0]
    assert {pair.item for pair in found} == {10 * item for item in range(1, NUM_ITEMS + 1)}
    for pair in found:
        assert pair.score == pytest.approx(float(scores[int(pair.item) // 10]), abs=1e-6)


def test_a_later_export_leaves_the_sets_vectors_alone(tmp_path: Path, prepared: Path, config: ExperimentConfig) -> None:
    before = (prepared / ITEM_VECTORS_FILE).read_bytes()
    for _ in range(2):
        export(config, tmp_path / "export")
    shutil.rmtree(tmp_path / "export")
    assert (prepared / ITEM_VECTORS_FILE).read_bytes() == before


def test_a_model_without_vectors_exports_none(tmp_path: Path, prepared: Path, make_config) -> None:
    export(make_config(prepared), tmp_path / "export")
    assert not (tmp_path / "export" / ITEM_VECTORS_FILE).exists()
    assert read_export(tmp_path / "export").vectors is None


def test_a_copy_where_links_are_impossible(
    tmp_path: Path, prepared: Path, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr("os.link", refuse)
    export(config, tmp_path / "export")
    copy = tmp_path / "export" / ITEM_VECTORS_FILE
    assert not copy.samefile(prepared / ITEM_VECTORS_FILE)
    assert copy.read_bytes() == (prepared / ITEM_VECTORS_FILE).read_bytes()


def test_damaged_vectors_are_refused(tmp_path: Path, prepared: Path, config: ExperimentConfig) -> None:
    export(config, tmp_path / "export")
    path = tmp_path / "export" / ITEM_VECTORS_FILE
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"item_vectors.npy is missing and should be \d+ bytes"):
        Recommender.load(tmp_path / "export")
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(DataError, match=r"item_vectors.npy cannot be read \(.*\); run `genrec prepare CONFIG"):
        Recommender.load(tmp_path / "export")
    np.save(prepared / ITEM_VECTORS_FILE, np.zeros((NUM_ITEMS, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"has 19 vectors for 20 items; prepare the data set again"):
        vectors_for(config, prepared)


def test_vectors_of_another_length_than_the_weights_are_refused(
    tmp_path: Path, prepared: Path, config: ExperimentConfig
) -> None:
    prepared_sets.give_vectors(prepared, np.zeros((NUM_ITEMS + 1, 4)))
    model = export(config, tmp_path / "narrow")
    prepared_sets.give_vectors(prepared, np.ones((NUM_ITEMS + 1, 5)))
    write_export(tmp_path / "export", model.state_dict(), config, prepared / ITEMS_FILE, {"step": 1})
    with pytest.raises(DataError, match=r"The weights in .* are not of the model in its config"):
        Recommender.load(tmp_path / "export")
