"""Where vectors come from: files by id, texts by TF-IDF, the table of an export."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prepared_sets import make_config
from semantic_sets import map_config, nested_vectors, write_set

from genrec.config import TfidfVectors
from genrec.data.item_vectors import vectors_for
from genrec.errors import ConfigError, DataError
from genrec.inference.export import write_export
from genrec.models.build import build_model
from genrec.models.fused_table import settle
from genrec.semantic.vectors import ItemVectorRows, VectorState, open_vectors, write_vectors
from genrec.semantic.vectors_texts import item_texts
from genrec.semantic.vectors_tfidf import fit_tfidf
from genrec.semantic.vocabulary import item_ids

TEXTS = ["red nail polish", "blue nail polish", "green nail file", "hair shampoo", "hair oil shampoo", "hair brush oil"]


def written(config, folder: Path, state: VectorState | None = None) -> ItemVectorRows:
    source = open_vectors(config, config.semantic_ids, state)
    ids = item_ids(config.data.prepared)
    return write_vectors(source, folder / "v.npy", 0, ids, config.semantic_ids.vectors.normalize)


def vector_config(prepared: Path, **settings: object):
    config = map_config(prepared)
    told = config.model_dump()
    told["semantic_ids"]["vectors"] = {"normalize": False} | settings
    return type(config).model_validate(told)


def test_rows_of_a_file_go_to_their_items(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 4)  # ids 10, 20, 30, 40
    np.save(tmp_path / "m.npy", np.arange(6, dtype=np.float32).reshape(3, 2) + 1)
    (tmp_path / "ids.txt").write_text("40\n10\n99\n")
    config = vector_config(prepared, name="file", path=str(tmp_path / "m.npy"), ids=str(tmp_path / "ids.txt"))
    found = written(config, tmp_path)
    assert found.vectors.tolist() == [[3, 4], [0, 0], [0, 0], [1, 2]]
    assert found.has_vector.tolist() == [True, False, False, True]


def test_rows_of_a_file_by_number(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 4)
    np.save(tmp_path / "m.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    config = vector_config(prepared, name="file", path=str(tmp_path / "m.npy"), first_id=1)
    found = written(config, tmp_path)
    assert found.vectors[:, 0].tolist() == [18.0, 38.0, 0.0, 0.0]  # rows 9 and 19; 30 and 40 have none
    with pytest.raises(DataError, match="a vector for none of the 4 items"):
        written(vector_config(prepared, name="file", path=str(tmp_path / "m.npy"), first_id=1_000), tmp_path)


def test_vectors_of_no_number_are_refused_and_lengths_divided(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 4, np.array([[3.0, 4], [0, 0], [0, 2], [1, 0]]))
    config = vector_config(prepared, name="item-vectors", normalize=True)
    assert written(config, tmp_path).vectors[[0, 1]].tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
    broken = write_set(tmp_path / "broken", 4, np.array([[3.0, 4], [np.nan, 0], [0, 2], [1, 0]]))
    with pytest.raises(
        DataError,
        match=r"vector of item '20' \(index 2\), row 2 of .*item_vectors.npy, holds a value that is no number",
    ):
        written(vector_config(broken, name="item-vectors"), tmp_path)
    np.save(tmp_path / "m.npy", np.array([[1, 2], [3, 4], [np.inf, 0]]))
    (tmp_path / "ids.txt").write_text("40\n10\n30\n")
    config = vector_config(prepared, name="file", path=str(tmp_path / "m.npy"), ids=str(tmp_path / "ids.txt"))
    with pytest.raises(DataError, match=r"vector of item '30' \(index 3\), row 2 of .*m.npy, holds"):
        written(config, tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"), [("nothing", "cannot be read"), ("half", "cannot be read"), ("npz", "several arrays")]
)
def test_a_file_that_is_no_matrix_is_told(tmp_path, content: str, sentence: str) -> None:
    path = tmp_path / "m.npy"
    np.save(path, np.ones((50, 2)))
    if content == "npz":
        np.savez(tmp_path / "m.npz", a=np.ones((5, 2)))
        (tmp_path / "m.npz").rename(path)
    else:
        path.write_bytes(path.read_bytes()[:300] if content == "half" else b"")
    config = vector_config(write_set(tmp_path / "set", 4), name="file", path=str(path))
    with pytest.raises(DataError, match=sentence):
        written(config, tmp_path)


def test_a_set_without_vectors_is_told(tmp_path) -> None:
    config = vector_config(write_set(tmp_path / "set", 4), name="item-vectors")
    with pytest.raises(ConfigError, match=r"has no item vectors; name their file in data\.item_vectors"):
        written(config, tmp_path)


def test_texts_come_from_json_csv_parquet_and_titles(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 3)
    expected = ["red nail", "", "oil"]
    with gzip.open(tmp_path / "t.json.gz", "wt") as file:
        json.dump({"10": "red nail", "30": ["oil"], "77": "x"}, file)
    (tmp_path / "t.tsv").write_text("item\ta\tb\n10\tred\tnail\n30\toil\t\n")
    pq.write_table(pa.table({"item": [10, 30], "a": ["red", "oil"], "b": ["nail", None]}), tmp_path / "t.parquet")
    for name in ("t.json.gz", "t.tsv", "t.parquet"):
        assert item_texts(prepared, str(tmp_path / name), "item", ("a", "b")).to_pylist() == expected
    with pytest.raises(DataError, match="must have one column 'title'"):
        item_texts(prepared, str(tmp_path / "t.tsv"), "item", ("title",))
    with pytest.raises(DataError, match="have no titles"):
        item_texts(prepared, None, "item", ("title",))
    (tmp_path / "twice.csv").write_text("item,a\n10,x\n10,y\n")
    with pytest.raises(DataError, match="has 2 rows for item '10'"):
        item_texts(prepared, str(tmp_path / "twice.csv"), "item", ("a",))


def test_tfidf_is_its_formula_and_new_texts_get_the_same_vectors() -> None:
    texts = pa.array(TEXTS, pa.large_string())
    tfidf = fit_tfidf(TfidfVectors(name="tfidf", dim=4, min_items=1), texts, seed=1)
    words = tfidf.words.to_pylist()
    matrix = np.zeros((len(TEXTS), len(words)))
    for row, text in enumerate(TEXTS):
        for word in text.split():
            share = sum(word in other.split() for other in TEXTS)
            matrix[row, words.index(word)] = 1 + np.log((1 + len(TEXTS)) / (1 + share))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    vectors = tfidf.vectors(texts)
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    best = (left[:, :4] * sizes[:4]) @ (left[:, :4] * sizes[:4]).T
    np.testing.assert_allclose(vectors @ vectors.T, best, atol=1e-4)
    np.testing.assert_allclose(tfidf.vectors(texts.slice(2, 1))[0], vectors[2], atol=1e-6)
    assert not tfidf.vectors(pa.array(["unheard words"], pa.large_string())).any()
    with pytest.raises(ConfigError, match=r"semantic_ids.vectors.dim \(64\) must be at most"):
        fit_tfidf(TfidfVectors(name="tfidf"), texts, seed=1)


def test_the_table_of_an_export_is_joined_by_id(tmp_path) -> None:
    old, new = write_set(tmp_path / "old", 3), write_set(tmp_path / "new", 4)
    weights = {"item_table.weight": torch.arange(8, dtype=torch.float32).reshape(4, 2)}
    write_export(tmp_path / "export", weights, map_config(old), old / "items.parquet", {"step": 1})
    config = vector_config(new, name="export", path=str(tmp_path / "export"))
    found = written(config, tmp_path)
    assert found.vectors.tolist() == [[2, 3], [4, 5], [6, 7], [0, 0]]
    source = open_vectors(config, config.semantic_ids)
    other = {"item_table.weight": weights["item_table.weight"] + 1}
    write_export(tmp_path / "export", other, map_config(old), old / "items.parquet", {"step": 2})
    with pytest.raises(DataError, match="New items need vectors of the space that the map was made in: model was"):
        open_vectors(config, config.semantic_ids, source.state)


def test_a_table_that_knows_the_validation_events_makes_maps_of_refits_only(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 3)
    config = map_config(prepared)
    sequence = config.sequence.model_copy(update={"train_on": "train+validation"})
    refitted = config.model_copy(update={"sequence": sequence})
    weights = {"item_table.weight": torch.arange(8, dtype=torch.float32).reshape(4, 2)}
    write_export(tmp_path / "export", weights, refitted, prepared / "items.parquet", {"step": 1})
    wanted = vector_config(prepared, name="export", path=str(tmp_path / "export"))
    with pytest.raises(ConfigError, match=r"semantic_ids.vectors.path names .*export, which was refitted"):
        open_vectors(wanted, wanted.semantic_ids)
    assert open_vectors(wanted.model_copy(update={"sequence": sequence}), wanted.semantic_ids).dim == 2


def test_the_table_of_a_model_that_reads_vectors_is_the_one_that_it_serves_with(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 12, nested_vectors(12))
    model = "model={name: sasrec, dim: 8, num_layers: 1, num_heads: 1}"
    config = make_config(prepared, "data.item_vectors.path=v.npy", "inputs.item_vectors.ids=false", model)
    built = build_model(config, 12, item_vectors=vectors_for(config, prepared))
    write_export(tmp_path / "export", built.state_dict(), config, prepared / "items.parquet", {"step": 1})
    found = written(vector_config(prepared, name="export", path=str(tmp_path / "export")), tmp_path)
    settle(built)
    np.testing.assert_allclose(found.vectors, built.item_table.weight[1:].numpy(), rtol=1e-6)
