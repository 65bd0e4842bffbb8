"""Optuna as a proposer: it learns, branches, and starts again where it was."""

import pytest
from tiny_sweep import loaded

from genrec.tuning.optuna_proposer import OptunaProposer, importances
from genrec.tuning.proposals import Outcome, proposer_of


def searched(tmp_path, base, **settings):
    spec, _ = loaded(tmp_path, base, searcher={"name": "optuna", "startup_trials": 6}, **settings)
    return spec, base.model_dump(mode="json")


def quality(params: dict) -> float:
    """Best at the top of the learning rates."""
    return params["optimizer.lr"]


def test_it_learns_where_good_trials_are(tmp_path, base) -> None:
    spec, values = searched(tmp_path, base, budget={"trials": 40})
    proposer = proposer_of(spec, values)
    found = []
    for number in range(30):
        params = proposer.propose(number)
        found.append(params["optimizer.lr"])
        proposer.learn(number, Outcome(params, (quality(params),)))
    early, late = sorted(found[1:8]), sorted(found[-10:])
    assert late[5] > 2 * early[3]  # medians


def test_started_again_it_proposes_the_same(tmp_path, base) -> None:
    spec, values = searched(tmp_path, base, budget={"trials": 40})
    first, second = OptunaProposer(spec, values), OptunaProposer(spec, values)
    done = []
    for number in range(12):
        params = first.propose(number)
        done.append(Outcome(params, (quality(params),)))
        first.learn(number, done[-1])
    for number, outcome in enumerate(done):
        second.learn(number, outcome)
    assert second.propose(12) == first.propose(12)


def test_several_metrics_and_conditions(tmp_path, base) -> None:
    space = {
        "model.name": {"choice": ["sasrec", "hstu"]},
        "model.query_dim": {"integer": [2, 8], "when": {"model.name": "hstu"}},
    }
    spec, values = searched(tmp_path, base, space=space, metric=["ndcg@10", "num_parameters"], budget={"trials": 20})
    proposer = OptunaProposer(spec, values)
    for number in range(20):
        params = proposer.propose(number)
        assert ("model.query_dim" in params) == (params["model.name"] == "hstu")
        outcome = (0.5, 100.0) if number % 3 else None
        proposer.learn(number, Outcome(params, outcome))
    assert proposer.propose(20) is None


def test_it_never_proposes_the_same_twice_and_a_small_space_ends(tmp_path, base) -> None:
    space = {"model.num_layers": {"choice": [1, 2, 3]}, "model.num_heads": {"choice": [1, 2, 4]}}
    spec, values = searched(tmp_path, base, space=space, budget={"trials": 40})
    proposer = OptunaProposer(spec, values)
    before: list[dict] = []
    while (params := proposer.propose(len(before), before)) is not None:
        assert params not in before
        proposer.learn(len(before), Outcome(params, (0.1 * params["model.num_layers"],)))
        before.append(params)
    assert len(before) == 9


def test_importance_finds_the_setting_that_decides(tmp_path, base) -> None:
    spec, values = searched(tmp_path, base, budget={"trials": 60})
    proposer = OptunaProposer(spec, values)
    outcomes = []
    for number in range(1, 40):
        params = proposer.propose(number)
        outcomes.append(Outcome(params, (quality(params),)))
    found = importances(spec, outcomes)
    assert found["optimizer.lr"] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(spec, outcomes[:2]) == {}
