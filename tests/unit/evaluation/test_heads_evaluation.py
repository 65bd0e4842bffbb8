"""Metrics of heads: equal to a count by hand, on any number of workers, whatever is ranked."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from prepared_sets import set_actions, set_values
from together import together
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.data.schema import ITEMS_FILE
from genrec.evaluation.evaluate import evaluate, evaluating
from genrec.evaluation.run_evaluation import evaluate_run
from genrec.evaluation.users import evaluation_batches
from genrec.inference.export import write_export
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.run_dir import RunDir

NUM_ITEMS = 60
ACTION = "heads={action: {weight: 0.5}, dwell: {}}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, write_prepared: Callable[..., Path]) -> Path:
    """70 users with streams, skips and saves, and seconds played; some actions and values are unknown."""
    generator = np.random.default_rng(4)
    sequences = [generator.integers(1, NUM_ITEMS + 1, generator.integers(1, 16)).tolist() for _ in range(70)]
    folder = write_prepared(tmp_path_factory.mktemp("data") / "set", sequences, num_items=NUM_ITEMS, rows_per_group=20)
    actions = [generator.choice([0, 1, 1, 1, 2, 2, 3], len(items)).tolist() for items in sequences]
    seconds = [np.where(generator.random(len(i)) < 0.2, np.nan, generator.gamma(1, 200, len(i))) for i in sequences]
    set_values(folder, [row.tolist() for row in seconds])
    return set_actions(folder, actions, ("stream", "skip", "save"))


def model_of(config: ExperimentConfig) -> SequenceModel:
    torch.manual_seed(7)
    return build_model(config, NUM_ITEMS, num_actions=3)


def by_hand(model: SequenceModel, config: ExperimentConfig) -> dict[str, float]:
    rows = pq.read_table(Path(config.data.prepared) / "sequences" / "part-00000.parquet").to_pylist()
    answers, correct, log_loss = [], 0, 0.0
    errors, played = [], []
    with evaluating(model):
        for users in evaluation_batches(config, load_manifest(config.data.prepared), "test"):
            hidden = model.last_hidden(users.batch)
            for row, user in enumerate(users.users.tolist()):
                action, item = rows[user]["actions"][-1], rows[user]["items"][-1]
                x = model.heads.inputs(hidden[row : row + 1], torch.tensor([item]), model.item_table)
                if not math.isnan(seconds := rows[user]["values"][-1]):
                    played.append(math.log1p(seconds))
                    errors.append(abs(model.heads.dwell(x).item() - played[-1]))
                if action:
                    shares = model.heads.action(x).exp().squeeze(0).tolist()
                    answers.append(action)
                    correct += max(range(3), key=shares.__getitem__) + 1 == action
                    log_loss -= math.log(shares[action - 1])
    shares = [answers.count(code) / len(answers) for code in (1, 2, 3)]
    return {
        "action_accuracy": correct / len(answers),
        "action_log_loss": log_loss / len(answers),
        "action_majority": max(shares),
        "action_base_log_loss": -sum(share * math.log(share) for share in shares),
        "dwell_mae_log": sum(errors) / len(errors),
        "dwell_base_mae_log": float(np.mean(np.abs(np.array(played) - np.median(played)))),
    }


def test_equals_a_count_by_hand_and_ignores_what_is_ranked(prepared: Path, make_config) -> None:
    config = make_config(prepared, ACTION, "evaluation.users_per_batch=16")
    model, manifest = model_of(config), load_manifest(prepared)
    expected = by_hand(model, config)
    assert 0 < expected["action_accuracy"] < 1
    everyone = evaluate(model, config, manifest, "test").heads
    assert everyone.pop("dwell_base_mae_log") == pytest.approx(expected.pop("dwell_base_mae_log"), abs=1 / 128)
    assert everyone == pytest.approx(expected, rel=1e-5)
    saves = make_config(prepared, ACTION, "evaluation.users_per_batch=16", "sequence.target_actions=[save]")
    found = evaluate(model, saves, manifest, "test")
    assert {name: found.heads[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found.num_users < 30


def test_a_model_without_heads_has_no_metrics_of_heads(prepared: Path, make_config) -> None:
    config = make_config(prepared)
    assert evaluate(model_of(config), config, load_manifest(prepared), "test").heads == {}


@pytest.mark.parametrize("shard_table_bytes", [0, 2**30])
def test_three_workers_measure_the_same(tmp_path: Path, prepared: Path, make_config, shard_table_bytes: int) -> None:
    config = make_config(
        prepared,
        ACTION,
        "evaluation.users_per_batch=16",
        "evaluation.max_scores_bytes=4096",
        f"evaluation.shard_table_bytes={shard_table_bytes}",
    )
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    weights = model_of(config).state_dict()
    write_export(run.export_path, weights, config, prepared / ITEMS_FILE, {"step": 3})
    alone = evaluate_run(run, ("validation", "test"))

    def work(rank: int, all_reduce: Callable[[Tensor], Tensor]) -> dict:
        return evaluate_run(run, ("validation", "test"), rank=rank, world_size=3, all_reduce=all_reduce)

    for result in together(work, workers=3):
        for role in ("validation", "test"):
            assert result[role]["heads"] == pytest.approx(alone[role]["heads"], rel=1e-6)
    told = json.loads(run.evaluation_path.read_text())
    assert set(told["test"]["heads"]) == set(by_hand(model_of(config), config))
