"""Evaluation and the popularity baseline against a brute-force reading of the protocol, alone and shared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from together import together
from torch import Tensor
from whole_number_model import WholeNumberModel

from genrec.config import ExperimentConfig, GlobalTimeSplit
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.manifest import load_manifest
from genrec.data.schema import Role
from genrec.errors import DataError, RunError
from genrec.evaluation.evaluate import evaluate
from genrec.evaluation.metrics import metrics_from_ranks
from genrec.evaluation.popularity import evaluate_popularity

NUM_ITEMS = 23
Score = Callable[[list[int]], list[float]]


def random_sequences(num_users: int, seed: int = 0) -> list[list[int]]:
    """Histories with repeats, so that some targets have been seen before."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 16)).tolist() for _ in range(num_users)]


def brute_force(sequences: list[list[int]], held_out: int, filter_seen: bool, score: Score) -> dict[str, float]:
    """The protocol, user by user: `score(history)` gives every item's score, index 0 first."""
    ranks = []
    for items in sequences:
        if len(items) < 3:
            continue
        history, target = items[:-held_out], items[-held_out]
        scores = score(history)
        candidates = set(range(1, NUM_ITEMS + 1)) - (set(history) if filter_seen else set()) - {target}
        ranks.append(1 + sum(scores[item] >= scores[target] for item in candidates))
    return metrics_from_ranks(torch.tensor(ranks), (1, 5, 10))


def model_score(model: WholeNumberModel, max_length: int) -> Score:
    def score(history: list[int]) -> list[float]:
        window = np.array(history[-max_length:])
        hidden = model.eval().last_hidden(batch_from_arrays(window, np.array([0, len(window)])))
        return model.item_table.scores(hidden)[0].tolist()

    return score


@pytest.mark.parametrize("role", ["validation", "test"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_metrics_are_those_of_brute_force(
    tmp_path: Path, write_prepared, make_config, role: Role, filter_seen: bool
) -> None:
    sequences = random_sequences(71)
    folder = write_prepared(tmp_path / "set", sequences, num_items=NUM_ITEMS, rows_per_group=16)
    config = make_config(folder, f"evaluation.filter_seen={str(filter_seen).lower()}", "evaluation.users_per_batch=8")
    model = WholeNumberModel(NUM_ITEMS)
    result = evaluate(model, config, load_manifest(folder), role)
    held_out = 1 if role == "test" else 2
    expected = brute_force(sequences, held_out, filter_seen, model_score(model, config.sequence.max_length))
    assert result.metrics == pytest.approx(expected, rel=1e-12)
    assert result.num_users == sum(len(items) >= 3 for items in sequences)
    assert 0 < result.standard_errors["hr@10"] < 0.1


@pytest.mark.parametrize("role", ["validation", "test"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_popularity_is_that_of_brute_force(
    tmp_path: Path, write_prepared, make_config, role: Role, filter_seen: bool
) -> None:
    sequences = random_sequences(71, seed=5)
    folder = write_prepared(tmp_path / "set", sequences, num_items=NUM_ITEMS, rows_per_group=16)
    config = make_config(folder, f"evaluation.filter_seen={str(filter_seen).lower()}")
    train = [item for items in sequences for item in (items[:-2] if len(items) >= 3 else items)]
    counts = np.bincount(train, minlength=NUM_ITEMS + 1).tolist()
    expected = brute_force(sequences, 1 if role == "test" else 2, filter_seen, lambda history: counts)
    assert evaluate_popularity(config, load_manifest(folder), role).metrics == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_users", [61, 2])
def test_two_workers_agree_with_one_to_the_last_bit(
    tmp_path: Path, write_prepared, make_config, num_users: int
) -> None:
    """Uneven shares: worker 0 has only users that are too short, so it runs placeholders while worker 1 evaluates."""
    sequences = [[1, 2]] * num_users + random_sequences(num_users)[: num_users - 1] + [[4, 5, 6]]
    folder = write_prepared(tmp_path / "set", sequences, num_items=NUM_ITEMS)
    manifest, config = load_manifest(folder), make_config(folder, "evaluation.users_per_batch=5")
    alone = evaluate(WholeNumberModel(NUM_ITEMS), config, manifest, "test")
    models = [WholeNumberModel(NUM_ITEMS) for _ in range(2)]
    results = together(
        lambda rank, all_reduce: evaluate(
            models[rank], config, manifest, "test", rank=rank, world_size=2, all_reduce=all_reduce
        ),
        workers=2,
    )
    for result in results:
        assert (result.metrics, result.num_users) == (alone.metrics, alone.num_users)
    assert models[0].num_passes == models[1].num_passes > 0

    baseline = evaluate_popularity(config, manifest, "test")
    shared = together(
        lambda rank, all_reduce: evaluate_popularity(
            config, manifest, "test", rank=rank, world_size=2, all_reduce=all_reduce
        ),
        workers=2,
    )
    assert [result.metrics for result in shared] == [baseline.metrics] * 2


def test_the_target_and_what_follows_change_no_score(tmp_path: Path, write_prepared, make_config) -> None:
    """Validation: whatever stands at the target and after it, the model is asked the same thing."""
    sequences = [items for items in random_sequences(40) if len(items) >= 3]
    changed = [[*items[:-2], (items[-2] % NUM_ITEMS) + 1, (items[-1] % NUM_ITEMS) + 1] for items in sequences]
    scores = []
    for name, rows in (("as-is", sequences), ("changed", changed)):
        folder = write_prepared(tmp_path / name, rows, num_items=NUM_ITEMS)
        seen_scores = _recorded_scores(make_config(folder), folder)
        scores.append(seen_scores)
    assert scores[0].shape == (len(sequences), NUM_ITEMS + 1)
    assert torch.equal(scores[0], scores[1])


def _recorded_scores(config: ExperimentConfig, folder: Path) -> Tensor:
    model = WholeNumberModel(NUM_ITEMS)
    recorded = []
    original = model.last_hidden

    def last_hidden(batch: Batch) -> Tensor:
        recorded.append(model.item_table.scores(original(batch)))
        return original(batch)

    model.last_hidden = last_hidden  # type: ignore[method-assign]
    evaluate(model, config, load_manifest(folder), "validation")
    return torch.cat(recorded)


def test_the_query_time_reaches_the_models_that_use_it(tmp_path: Path, write_prepared, make_config) -> None:
    sequences = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [3, 2, 1], [9, 1, 4]]
    found = []
    for name, last in (("soon", 21), ("late", 25)):
        times = [[10, 20, last]] * len(sequences)
        folder = write_prepared(tmp_path / name, sequences, times=times, num_items=NUM_ITEMS)
        model = WholeNumberModel(NUM_ITEMS, uses_query_time=True)
        found.append(evaluate(model, make_config(folder), load_manifest(folder), "test").metrics)
    assert found[0] != found[1]


def test_the_model_gets_each_modules_mode_back(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", random_sequences(20), num_items=NUM_ITEMS)
    model = WholeNumberModel(NUM_ITEMS)
    model.train()
    model.item_table.eval()
    evaluate(model, make_config(folder), load_manifest(folder), "test")
    assert model.modes == {False}
    assert (model.training, model.item_table.training) == (True, False)


def test_a_diverged_model_is_an_error(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", random_sequences(20), num_items=NUM_ITEMS)
    model = WholeNumberModel(NUM_ITEMS)
    with torch.no_grad():
        model.item_table.weight[3, 0] = float("nan")
    with pytest.raises(RunError, match="NaN"):
        evaluate(model, make_config(folder), load_manifest(folder), "test")
    assert model.training


def test_a_role_without_users_is_an_error(tmp_path: Path, write_prepared, make_config) -> None:
    split = GlobalTimeSplit(name="global-time", validation_from=100, test_from=200)
    folder = write_prepared(tmp_path / "set", [[1, 2, 3]], times=[[1, 2, 3]], split=split)
    with pytest.raises(DataError, match=r"no user to evaluate for test.*test from 200.*1 to 3"):
        evaluate(WholeNumberModel(3), make_config(folder), load_manifest(folder), "test")
    listened = make_config(folder, "sequence.target_actions=[play]")
    with pytest.raises(
        DataError, match=r"test from 200.* Or no held-out event has an action .*target_actions \(play\)"
    ):
        evaluate(WholeNumberModel(3), listened, load_manifest(folder), "test")
    few = make_config(folder, "evaluation.max_validation_users=7")
    with pytest.raises(DataError, match=r"validation from 100.* Or nobody .*evaluation.max_validation_users \(7\)"):
        evaluate(WholeNumberModel(3), few, load_manifest(folder), "validation")
    folder = write_prepared(tmp_path / "short", [[1, 2]])
    with pytest.raises(DataError, match="at least 3 events"):
        evaluate_popularity(make_config(folder), load_manifest(folder), "validation")
