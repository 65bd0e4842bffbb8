"""The commands of a run whose model writes codes: train, evaluate, plan, refused maps; and recommending from Python."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import losses, refused, succeed

from genrec import Recommender
from genrec.semantic.ids import SemanticIds, load_semantic_ids
from genrec.semantic.vocabulary import item_ids, items_digest

LOCAL = ("train", "codes.yaml", "--launcher", "local")
CHANGES = {
    "name: walk": "name: codes\nsemantic_ids: {path: map}\ncluster: {threads_per_worker: 1}",
    "model: {name: sasrec, dim: 16, num_layers: 1, num_heads: 1, dropout: 0.1}": (
        "model: {name: code-decoder, history: items, dim: 32, num_layers: 1, num_heads: 2, dropout: 0.1}"
    ),
    "loss: {name: sampled-softmax, num_negatives: 20}": "loss: {name: full-softmax}",
}


def save_map(folder: Path, seed: int) -> None:
    """100 items as distinct random tuples of two codes of 12 and 10."""
    chosen = np.random.default_rng(seed).permutation(120)[:100]
    codes = np.full((101, 2), -1, dtype=np.int32)
    codes[1:] = np.stack(np.unravel_index(chosen, (12, 10)), axis=1)
    catalogue = items_digest(item_ids(folder.parent / "prepared" / "walks"))
    SemanticIds(codes, (12, 10), catalogue).save(folder)


@pytest.fixture(scope="module")
def trained(prepared_project: Path) -> Path:
    """A finished run of a model that writes codes."""
    text = (prepared_project / "walk.yaml").read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (prepared_project / "codes.yaml").write_text(text)
    save_map(prepared_project / "map", 1)
    succeed(prepared_project, *LOCAL)
    return prepared_project


def test_it_learns_and_says_how_it_was_measured(trained: Path) -> None:
    told = json.loads((trained / "runs" / "codes" / "evaluation.json").read_text())["test"]
    assert told["metrics"]["hr@10"] > 0.9  # the next item is one of three
    assert told["protocol"]["decoding"].startswith("codes: beam search, width 50")
    assert told["protocol"]["inputs"] == "codes"
    again = json.loads(succeed(trained, "evaluate", "runs/codes", "--json"))
    assert again["test"]["metrics"] == pytest.approx(told["metrics"], abs=1e-6)


def test_the_export_has_its_map_and_recommends_without_the_first_one(trained: Path) -> None:
    export = trained / "runs" / "codes" / "export"
    assert load_semantic_ids(export).digest == load_semantic_ids(trained / "map").digest
    (trained / "map").rename(trained / "hidden")
    try:
        recommended = Recommender.load(export).recommend([5, 7, 9], k=3, exclude_seen=False)
    finally:
        (trained / "hidden").rename(trained / "map")
    assert len({item for item, _ in recommended} & {10, 11, 12}) >= 2
    scores = [score for _, score in recommended]
    assert scores == sorted(scores, reverse=True)
    assert sum(np.exp(scores)) < 1


@pytest.mark.slow
def test_another_map_is_refused_when_a_run_goes_on(trained: Path) -> None:
    save_map(trained / "other", 2)
    message = refused(trained, *LOCAL, "semantic_ids.path=other", exit_code=1)
    assert "was trained with the map" in message
    assert "--fresh" in message
    assert "path: map" in (trained / "runs" / "codes" / "config.yaml").read_text()  # a refused command changes nothing
    save_map(trained / "copy", 1)
    before = losses(trained / "runs" / "codes")
    succeed(trained, *LOCAL, "semantic_ids.path=copy")  # the same codes in another folder
    assert losses(trained / "runs" / "codes") == before


@pytest.mark.slow
def test_a_plan_knows_the_weights(trained: Path) -> None:
    plan = json.loads(succeed(trained, "plan", "codes.yaml", "--json"))
    evaluation = json.loads((trained / "runs" / "codes" / "evaluation.json").read_text())
    assert plan["weights"] == {"total": evaluation["test"]["num_parameters"], "item_table": 0}


def test_mistakes_get_a_sentence(trained: Path) -> None:
    # A map that is missing is made, of the items' titles where nothing else is said.
    assert "have no titles; name a file" in refused(trained, *LOCAL, "name=m", "semantic_ids.path=nowhere")
    assert "semantic_ids is null" in refused(trained, *LOCAL, "name=m", "semantic_ids=null")
    codes = np.full((10, 2), -1, dtype=np.int32)
    codes[1:] = np.stack(np.unravel_index(np.arange(9), (3, 3)), axis=1)
    SemanticIds(codes, (3, 3), "few").save(trained / "few")
    message = refused(trained, *LOCAL, "name=m", "semantic_ids.path=few")
    assert "The map few is of another catalogue" in message and "(9 items, 100 there" in message
