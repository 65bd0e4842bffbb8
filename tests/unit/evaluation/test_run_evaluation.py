"""What an evaluated run leaves behind: the same from one worker and from several that share the item table out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import prepared_sets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from together import together
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.item_vectors import vectors_for
from genrec.data.manifest import file_digest, load_manifest
from genrec.data.schema import ITEMS_FILE
from genrec.errors import DataError
from genrec.evaluation.detail import gather_ranks
from genrec.evaluation.run_evaluation import evaluate_run, evaluate_served
from genrec.evaluation.user_ranks import UserRanks, read_ranks, write_ranks
from genrec.evaluation.workers import ALONE, Workers
from genrec.inference.export import write_export
from genrec.inference.serving import ServedModel
from genrec.models.build import build_model
from genrec.run_dir import RunDir

NUM_ITEMS = 300


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, write_prepared: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(4)
    sequences = [rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 16)).tolist() for _ in range(90)]
    folder = write_prepared(tmp_path_factory.mktemp("data") / "set", sequences, num_items=NUM_ITEMS, rows_per_group=20)
    vectors = rng.normal(size=(NUM_ITEMS + 1, 6))
    vectors[[0, 7, 100]] = 0
    prepared_sets.give_vectors(folder, vectors)
    return folder


def exported(folder: Path, config: ExperimentConfig) -> RunDir:
    """A run whose export is a model as it was made."""
    torch.manual_seed(7)
    model = build_model(config, NUM_ITEMS, item_vectors=vectors_for(config, config.data.prepared))
    run = RunDir(folder)
    run.root.mkdir()
    write_export(run.export_path, model.state_dict(), config, Path(config.data.prepared) / ITEMS_FILE, {"step": 40})
    return run


def told(run: RunDir) -> dict:
    """evaluation.json without what differs from time to time."""
    values = json.loads(run.evaluation_path.read_text())
    for role in values.values():
        del role["seconds"]
    return values


@pytest.mark.parametrize("inputs", [(), prepared_sets.WITH_VECTORS], ids=["ids", "item-vectors"])
@pytest.mark.parametrize("l2_normalize", ["false", "true"])
def test_workers_that_share_the_table_out_tell_the_same(
    tmp_path: Path, prepared: Path, make_config, l2_normalize: str, inputs: tuple[str, ...]
) -> None:
    config = make_config(
        prepared,
        "evaluation.users_per_batch=16",
        "evaluation.max_scores_bytes=4096",
        "evaluation.shard_table_bytes=0",
        f"model.l2_normalize={l2_normalize}",
        *inputs,
    )
    alone, shared = exported(tmp_path / "alone", config), exported(tmp_path / "shared", config)
    evaluate_run(alone, ("validation", "test"))

    def run(rank: int, all_reduce: Callable[[Tensor], Tensor]) -> dict:
        return evaluate_run(shared, ("validation", "test"), rank=rank, world_size=3, all_reduce=all_reduce)

    results = together(run, workers=3)
    assert results[1]["test"]["metrics"] == results[0]["test"]["metrics"]
    assert told(shared) == told(alone)
    for role in ("validation", "test"):
        assert (read_ranks(shared.ranks_path(role)).columns == read_ranks(alone.ranks_path(role)).columns).all()


def test_a_set_that_was_prepared_again_is_refused(tmp_path: Path, write_prepared, make_config) -> None:
    """Items are numbered by their counts, so after more of the log an index may mean another item."""
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]] * 4, num_items=NUM_ITEMS)
    config = make_config(folder, "inputs.actions=true")
    torch.manual_seed(7)
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    weights, info = build_model(config, NUM_ITEMS).state_dict(), {"step": 40, "actions": ["play"]}
    write_export(run.export_path, weights, config, folder / ITEMS_FILE, info)
    evaluate_run(run, ("test",))
    items = pq.read_table(folder / ITEMS_FILE)
    swapped = pa.array([20, 10, *items["item"].to_pylist()[2:]], pa.int64())
    pq.write_table(items.set_column(1, items.schema.field("item"), swapped), folder / ITEMS_FILE)
    for evaluate in (evaluate_run, lambda *asked: evaluate_served(*asked, ServedModel())):
        with pytest.raises(DataError, match=r"items of .*set are not those that the model was trained on"):
            evaluate(run, ("test",))
    pq.write_table(items, folder / ITEMS_FILE)
    write_export(run.export_path, weights, config, folder / ITEMS_FILE, info | {"actions": ["skip"]})
    with pytest.raises(DataError, match=r"actions of .*set are play, and the model was trained on skip"):
        evaluate_run(run, ("test",))


def test_a_run_is_told_in_full(tmp_path: Path, prepared: Path, make_config) -> None:
    config = make_config(prepared)
    run = exported(tmp_path / "run", config)
    evaluate_run(run, ("test",))
    test = told(run)["test"]
    assert test["num_parameters"] == sum(weight.numel() for weight in build_model(config, NUM_ITEMS).parameters())
    assert set(test["intervals"]) == set(test["metrics"])
    assert all(low <= test["metrics"][name] <= high for name, (low, high) in test["intervals"].items())
    assert 0 < test["beyond_accuracy"]["coverage@10"] <= 1
    assert set(test["slices"]) == {"history_length", "popularity", "cold"}
    ranks = read_ranks(run.ranks_path("test"))
    assert (ranks.step, ranks.num_users) == (40, test["num_users"]) == (40, len(ranks.users))
    assert np.mean(ranks.ranks <= 10) == pytest.approx(test["metrics"]["hr@10"])
    # A second role is added, and the first one stays.
    evaluate_run(run, ("validation",))
    assert told(run)["test"] == test and "validation" in told(run)
    assert test["ranks_sha256"] == file_digest(run.ranks_path("test"))
    run.evaluation_path.write_text(run.evaluation_path.read_text()[:40])
    evaluate_run(run, ("test",))
    assert told(run) == {"test": test}


def test_histories_count_whole_where_seen_items_are_not_filtered(tmp_path: Path, prepared: Path, make_config) -> None:
    """Without the filter only the window is read, and yet the history's own length is told."""
    lengths = []
    for name, filter_seen in (("with", "true"), ("without", "false")):
        run = exported(tmp_path / name, make_config(prepared, f"evaluation.filter_seen={filter_seen}"))
        evaluate_run(run, ("test",))
        lengths.append(read_ranks(run.ranks_path("test")).columns[:, 3])
    assert (lengths[0] == lengths[1]).all() and lengths[0].max() > 8
    assert load_manifest(prepared).num_users == 90


def some_columns(num_users: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    users = rng.permutation(num_users)
    return np.stack([users, rng.integers(1, 20_000, num_users), rng.zipf(1.3, num_users) % 10**6, users % 200], axis=1)


def test_ranks_are_read_as_written_and_take_few_bytes(tmp_path: Path) -> None:
    ranks = gather_ranks(some_columns(50_000), 12, ALONE, torch.device("cpu"))
    path = tmp_path / "ranks-test.parquet"
    write_ranks(path, ranks)
    found = read_ranks(path)
    assert (found.columns == ranks.columns).all() and (found.step, found.num_users) == (12, 50_000)
    assert found.users.tolist() == list(range(50_000))
    assert path.stat().st_size < 9 * 50_000


def test_a_sample_of_many_users_does_not_depend_on_the_workers() -> None:
    columns = some_columns(3_000)
    alone = gather_ranks(columns, 1, ALONE, torch.device("cpu"), limit=500)
    assert alone.num_users == 3_000 and 400 < len(alone.users) < 600
    parts = [columns[:1_000], columns[1_000:1_000], columns[1_000:]]

    def run(rank: int, all_reduce: Callable[[Tensor], Tensor]) -> UserRanks:
        return gather_ranks(parts[rank], 1, Workers(rank, 3, all_reduce), torch.device("cpu"), limit=500)

    shared = together(run, workers=3)
    assert (shared[0].columns == alone.columns).all()
    assert len(shared[1].users) == len(shared[2].users) == 0


def test_damaged_and_missing_ranks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks-test.parquet"
    with pytest.raises(DataError, match=r"is missing.*genrec evaluate"):
        read_ranks(path)
    write_ranks(path, UserRanks(some_columns(100), 1, 100))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is damaged.*genrec evaluate"):
        read_ranks(path)
