"""A model that was trained before its map grew writes the new items too; any other map is refused in a sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from semantic_sets import map_config, nested_vectors, write_set

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.item_types import read_item_types
from genrec.data.schema import ITEMS_FILE
from genrec.errors import ConfigError, DataError, GenrecError
from genrec.evaluation.run_evaluation import evaluate_run, evaluate_served
from genrec.inference.export import write_export
from genrec.inference.load import load_model
from genrec.inference.recommender import Recommender
from genrec.inference.serving import Serving
from genrec.models.build import build_model
from genrec.run_dir import RunDir, run_dir_of
from genrec.semantic.extend import extend
from genrec.semantic.ids import SemanticIds, load_semantic_ids
from genrec.semantic.tokenize import tokenize

NUM_OLD, NUM_NEW = 30, 6
VECTORS = nested_vectors(NUM_OLD + NUM_NEW)
MODELS = {
    "codes": "{name: code-decoder, dim: 16, num_layers: 1, num_heads: 2, separator: true}",
    "items": "{name: code-decoder, history: items, item_ids: true, dim: 16, num_layers: 1, num_heads: 2}",
    "tiger": "{name: tiger, dim: 8, num_layers: 1, num_heads: 2, head_dim: 4, feed_forward_dim: 8}",
}


def experiment(folder: Path, *overrides: str) -> ExperimentConfig:
    return map_config(
        folder / "set",
        "semantic_ids.tokenizer.sizes=[4,32]",
        "semantic_ids.collisions=nearest",
        "semantic_ids.health.min_code_usage=0",
        "semantic_ids.health.min_entropy=0",
        "evaluation.beam_width=40",
        *overrides,
    )


def publish(config: ExperimentConfig, ids: SemanticIds | None) -> RunDir:
    """A run with the export of an untrained model."""
    run = run_dir_of(config)
    run.create(config)
    torch.manual_seed(1)
    state_dict = build_model(config, NUM_OLD, semantic_ids=ids).state_dict()
    items = Path(config.data.prepared) / ITEMS_FILE
    write_export(run.export_path, state_dict, config, items, {"step": 3}, ids)
    return run


def grow(folder: Path, config: ExperimentConfig) -> None:
    """The set gets new items behind the old ones, and the map codes for them."""
    shutil.rmtree(folder / "set")
    write_set(folder / "set", NUM_OLD + NUM_NEW, VECTORS)
    assert extend(config).num_new == NUM_NEW


@pytest.mark.parametrize("name", MODELS)
def test_new_items_are_written_and_old_ones_are_scored_as_before(tmp_path: Path, name: str) -> None:
    write_set(tmp_path / "set", NUM_OLD, VECTORS[:NUM_OLD])
    config = experiment(tmp_path, f"model={MODELS[name]}")
    made = tokenize(config)
    assert made is not None
    run = publish(config, made.ids)
    history = [10, 70, 40, 120]  # original ids are 10 * item index
    before = dict(Recommender.load(run.root).recommend(history, NUM_OLD, exclude_seen=False))
    grow(tmp_path, config)
    grown = Recommender.load(run.root, served=Serving(map=tmp_path / "map"))
    after = dict(grown.recommend(history, NUM_OLD + NUM_NEW, exclude_seen=False))
    assert set(after) == {10 * item for item in range(1, NUM_OLD + NUM_NEW + 1)}
    assert {item: after[item] for item in before} == pytest.approx(before, abs=1e-5)
    new = 10 * (NUM_OLD + 1)
    assert len(grown.recommend([new, 20, new + 10], 5)) == 5, "a history may hold new items"
    with pytest.raises(DataError, match="does not know, 310 for one"):
        Recommender.load(run.root).recommend([new, 20], 5)


def test_types_of_new_items_go_along(tmp_path: Path) -> None:
    def give_types(*names: str) -> None:
        path = tmp_path / "set" / ITEMS_FILE
        items = pq.read_table(path)
        types = pa.array([names[index % len(names)] for index in range(items.num_rows)], pa.string())
        pq.write_table(items.set_column(4, items.schema.field("type"), types), path)

    write_set(tmp_path / "set", NUM_OLD, VECTORS[:NUM_OLD])
    give_types("track", "episode")
    config = experiment(tmp_path, f"model={MODELS['items']}", "inputs.item_types=true")
    made = tokenize(config)
    assert made is not None
    run = run_dir_of(config)
    run.create(config)
    model = build_model(config, NUM_OLD, read_item_types(tmp_path / "set"), semantic_ids=made.ids)
    write_export(run.export_path, model.state_dict(), config, tmp_path / "set" / ITEMS_FILE, {"step": 3}, made.ids)
    grow(tmp_path, config)
    give_types("book", "episode", "track")  # a new type comes first, so the table numbers them anew
    grown = load_model(run.root, Serving(map=tmp_path / "map"))
    (types,) = (value for name, value in grown.model.state_dict().items() if name.endswith("item_types"))
    before = model.state_dict()[next(name for name in model.state_dict() if name.endswith("item_types"))]
    assert torch.equal(types[: NUM_OLD + 1], before)
    assert types[NUM_OLD + 1 :].tolist() == [3, 2, 1, 3, 2, 1]  # book, which the model has not met, episode, track
    assert len(Recommender.load(run.root, served=Serving(map=tmp_path / "map")).recommend([310, 20], 5)) == 5


def test_a_level_of_numbers_does_not_grow_so_the_model_goes_on(tmp_path: Path) -> None:
    """As many new items with an old one's vector as no bucket of the old map had."""
    write_set(tmp_path / "set", NUM_OLD, VECTORS[:NUM_OLD])
    config = experiment(tmp_path, f"model={MODELS['codes']}", "semantic_ids.collisions=dedup")
    made = tokenize(config)
    assert made is not None and made.ids.sizes[-1] < NUM_NEW
    run = publish(config, made.ids)
    shutil.rmtree(tmp_path / "set")
    copies = np.concatenate([VECTORS[:NUM_OLD], VECTORS[:1].repeat(NUM_NEW, axis=0)])
    write_set(tmp_path / "set", NUM_OLD + NUM_NEW, copies)
    extended = extend(config)
    assert extended.grown is None and extended.ids.sizes == made.ids.sizes
    grown = Recommender.load(run.root, served=Serving(map=tmp_path / "map"))
    found = grown.recommend([10, 70], NUM_OLD + NUM_NEW, exclude_seen=False)
    assert {item for item, _ in found} == {10 * item for item in range(1, NUM_OLD + NUM_NEW + 1)}


def test_evaluation_asks_for_new_items_too(tmp_path: Path) -> None:
    write_set(tmp_path / "set", NUM_OLD, VECTORS[:NUM_OLD])
    config = experiment(tmp_path, f"model={MODELS['items']}", "evaluation.ks=[10,36]")
    made = tokenize(config)
    assert made is not None
    run = publish(config, made.ids)
    grow(tmp_path, config)  # everybody's last item is a new one
    with pytest.raises(DataError, match=r"was trained on 30 items, and .*set has 36 by now; evaluate it with --map"):
        evaluate_run(run, ("test",))
    with pytest.raises(DataError, match="was trained on 30 items"):
        evaluate_served(run, ("test",), Serving())
    told = evaluate_served(run, ("test",), Serving(map=tmp_path / "map"))["test"]
    assert told["metrics"]["hr@36"] == 1
    assert "6 items have joined since the training, with codes of the map" in told["protocol"]["answered_by"]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[ExperimentConfig, RunDir, SemanticIds]:
    write_set(tmp_path / "set", NUM_OLD, VECTORS[:NUM_OLD])
    config = experiment(tmp_path, f"model={MODELS['codes']}")
    made = tokenize(config)
    assert made is not None
    return config, publish(config, made.ids), made.ids


def other_codes(ids: SemanticIds) -> SemanticIds:
    codes = ids.codes.copy()
    codes[[1, 2]] = codes[[2, 1]]
    return SemanticIds(codes, ids.sizes, ids.items_digest)


def larger_level(ids: SemanticIds) -> SemanticIds:
    return SemanticIds(ids.codes, (*ids.sizes[:-1], ids.sizes[-1] + 1), ids.items_digest)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_codes, "has other codes for items that .* was trained on"),
        (larger_level, "Level 1 of the map .* has grown from 32 to 33 codes, and .* has no output for the new ones"),
    ],
)
def test_a_map_that_does_more_than_add_items_is_refused(
    tmp_path: Path,
    trained: tuple[ExperimentConfig, RunDir, SemanticIds],
    change: Callable[[SemanticIds], SemanticIds],
    sentence: str,
) -> None:
    config, run, _ = trained
    grow(tmp_path, config)
    change(load_semantic_ids(tmp_path / "map")).save(tmp_path / "changed")
    with pytest.raises(ConfigError, match=sentence):
        Recommender.load(run.root, served=Serving(map=tmp_path / "changed"))


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, trained: tuple[ExperimentConfig, RunDir, SemanticIds]
) -> None:
    config, run, ids = trained

    def refused(where: RunDir, folder: Path, error: type[GenrecError]) -> str:
        with pytest.raises(error) as caught:
            Recommender.load(where.root, served=Serving(map=folder))
        return str(caught.value)

    assert "holds no map of semantic ids" in refused(run, tmp_path / "nowhere", DataError)
    dense = publish(config_from_dict(config.model_dump() | {"name": "dense", "model": {"name": "sasrec"}}), None)
    assert "(sasrec) writes no codes, so it has no map that could grow" in refused(dense, tmp_path / "map", ConfigError)
    grow(tmp_path, config)
    ids.save(tmp_path / "old")
    assert "30 items and" in refused(run, tmp_path / "old", DataError)
    # The same items in another order, and a map of those: an index is another item.
    shutil.rmtree(tmp_path / "set")
    reordered = np.concatenate([VECTORS[:NUM_OLD][::-1], VECTORS[NUM_OLD:]])
    write_set(tmp_path / "set", NUM_OLD + NUM_NEW, reordered)
    table = tmp_path / "set" / ITEMS_FILE
    _swap_first_ids(table)
    assert tokenize(config, overwrite=True) is not None
    assert "The first 30 items of the map" in refused(run, tmp_path / "map", ConfigError)


def _swap_first_ids(path: Path) -> None:
    items = pq.read_table(path)
    ids = items["item"].to_pylist()
    ids[:2] = ids[1::-1]
    pq.write_table(items.set_column(1, items.schema.field(1), pa.array(ids)), path)
