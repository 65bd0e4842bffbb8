"""Items that nobody has played in training are found by their vectors, and hardly ever without."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrec.config import DataConfig, ExperimentConfig
from genrec.data.prepare import prepare
from genrec.data.schema import ITEM_VECTORS_FILE
from genrec.evaluation.run_evaluation import evaluate_run
from genrec.inference.recommender import Recommender
from genrec.run_dir import RunDir, run_dir_of
from genrec.training.checkpoint_list import find_checkpoint
from genrec.training.checkpoint_store import store_of
from genrec.training.checkpoint_tools import export_checkpoint
from genrec.training.local import fit
from genrec.training.start import open_run_directory

NUM_CLUSTERS, VECTOR_DIM, NUM_USERS = 6, 16, 240
WARM, COLD, UNHEARD = range(10), range(10, 14), range(14, 15)  # items of each cluster, by when they are first heard


class World(NamedTuple):
    """A prepared set in which users stay in their cluster, and vectors say the cluster and nothing else."""

    prepared: Path
    values: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(NUM_CLUSTERS, VECTOR_DIM))
    items = [f"{cluster}-{number}" for cluster in range(NUM_CLUSTERS) for number in (*WARM, *COLD, *UNHEARD)]
    vectors = [centres[int(item[0])] + 0.3 * rng.normal(size=VECTOR_DIM) for item in items]
    pq.write_table(pa.table({"item": items, "vector": [vector.tolist() for vector in vectors]}), folder / "v.parquet")
    rows = []
    for user in range(NUM_USERS):
        cluster = user % NUM_CLUSTERS
        heard = rng.choice(WARM, 7, replace=False)
        later = rng.choice(COLD, 2, replace=False)
        rows += [
            {"user": user, "item": f"{cluster}-{number}", "time": time_s}
            for time_s, number in [*enumerate(heard), (100, later[0]), (200, later[1])]
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    values = {
        "source": {"name": "parquet", "path": str(folder / "log.parquet")},
        "prepared": str(folder / "set"),
        "split": {"name": "global-time", "validation_from": 100, "test_from": 200},
        "item_vectors": {"path": str(folder / "v.parquet"), "cold_items": True},
    }
    manifest = prepare(DataConfig.model_validate(values))
    assert (manifest.num_items, manifest.num_train_items) == (len(items), NUM_CLUSTERS * len(WARM))
    assert manifest.item_vectors is not None and manifest.item_vectors.num_cold_items == NUM_CLUSTERS * len(UNHEARD)
    return World(folder / "set", values)


def trained(world: World, make_config, name: str, *overrides: str) -> tuple[ExperimentConfig, RunDir]:
    config = make_config(
        world.prepared,
        f"name={name}",
        f"data={json.dumps(world.values)}",
        "engine={name: torch}",
        "batch={tokens_per_step: 512, micro_batches_per_step: 2}",
        "model={name: sasrec, dim: 16, num_layers: 1, num_heads: 1, dropout: 0.1}",
        "optimizer.lr=0.01",
        "train={max_steps: 60, evaluate_every_epochs: 100}",
        "cluster.threads_per_worker=1",
        *overrides,
    )
    fit(config, open_run_directory(config, fresh=True, say=lambda _: None), time.time())
    return config, run_dir_of(config)


@pytest.fixture(scope="module")
def with_vectors(world: World, make_config) -> tuple[ExperimentConfig, RunDir]:
    return trained(world, make_config, "with", "inputs.item_vectors={id_dropout: 0.2}")


def results_of(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.evaluation_path.read_text())["test"]
    return found


def test_vectors_find_what_ids_cannot(world: World, with_vectors, make_config) -> None:
    """Every test target is cold. By chance, 10 of the 83 unseen items hit 12% of them."""
    with_them = results_of(with_vectors[1])
    without = results_of(trained(world, make_config, "without")[1])
    vectors_alone = results_of(trained(world, make_config, "alone", "inputs.item_vectors={ids: false}")[1])
    assert with_them["num_users"] == without["num_users"] == NUM_USERS
    assert with_them["metrics"]["hr@10"] > 0.95
    assert vectors_alone["metrics"]["hr@10"] > 0.95
    assert without["metrics"]["hr@10"] < 0.3
    assert with_them["protocol"]["inputs"] == "items, item vectors"
    assert vectors_alone["protocol"]["inputs"] == "item vectors in place of ids"
    assert "90 items (6 of them without an event in the log" in with_them["protocol"]["candidates"]


def test_id_dropout_helps_cold_items(world: World, with_vectors, make_config) -> None:
    never_dropped = results_of(trained(world, make_config, "kept", "inputs.item_vectors={id_dropout: 0.0}")[1])
    with_dropout = results_of(with_vectors[1])
    assert with_dropout["metrics"]["ndcg@10"] > never_dropped["metrics"]["ndcg@10"] + 0.05


def test_items_that_the_log_has_never_seen_are_recommended(with_vectors) -> None:
    _, run = with_vectors
    recommender = Recommender.load(run.root)
    for cluster in range(NUM_CLUSTERS):
        history = [f"{cluster}-{number}" for number in (1, 4, 2, 8, 5, 7, 0)]
        found = [pair.item for pair in recommender.recommend(history, k=8)]
        assert f"{cluster}-14" in found
        assert sum(str(item).startswith(f"{cluster}-") for item in found) >= 7
        # And a history may hold them.
        from_cold = [pair.item for pair in recommender.recommend([f"{cluster}-14"], k=8)]
        assert sum(str(item).startswith(f"{cluster}-") for item in from_cold) >= 6


def test_the_run_can_be_evaluated_and_exported_again(world: World, with_vectors, tmp_path: Path) -> None:
    config, run = with_vectors
    before = results_of(run)
    evaluate_run(run, ("test",))
    assert results_of(run)["metrics"] == before["metrics"]
    newest = find_checkpoint(store_of(config, run), "latest")
    export_checkpoint(newest, run, config, tmp_path / "again")
    for name in (ITEM_VECTORS_FILE, "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run.export_path / name).read_bytes()
    assert (run.export_path / ITEM_VECTORS_FILE).samefile(world.prepared / ITEM_VECTORS_FILE)


def test_a_checkpoint_holds_no_vectors(with_vectors) -> None:
    _, run = with_vectors
    (saved,) = sorted(run.checkpoints_path.glob("step_*/**/torch.pt"))
    state = torch.load(saved, weights_only=True)
    assert "item_table.projection" in state["model"] and "item_table.vectors" not in state["model"]
