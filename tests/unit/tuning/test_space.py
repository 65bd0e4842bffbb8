"""Draws, grids and conditions: what a trial is, is a function of the seed and its number."""

import math

import pytest
from tiny_sweep import loaded

from genrec.errors import ConfigError
from genrec.tuning.proposals import listed_params
from genrec.tuning.space import config_with, draw, grid


def test_draws_are_a_function_of_seed_and_number(tmp_path, base) -> None:
    values = base.model_dump(mode="json")
    spec, _ = loaded(tmp_path, base)
    other, _ = loaded(tmp_path, base, seed=2)
    assert [draw(spec, n, values) for n in (5, 3, 5)] == [draw(spec, n, values) for n in (5, 3, 5)]
    assert draw(spec, 3, values) != draw(spec, 4, values)
    assert draw(spec, 3, values) != draw(other, 3, values)


def test_a_longer_sweep_begins_with_the_shorter_one(tmp_path, base) -> None:
    values = base.model_dump(mode="json")
    short, _ = loaded(tmp_path, base, budget={"trials": 4})
    long, _ = loaded(tmp_path, base, budget={"trials": 9})
    assert listed_params(long, values)[:4] == listed_params(short, values)
    assert listed_params(short, values)[0] == {"optimizer.lr": base.optimizer.lr, "model.dropout": 0.0}


def test_draws_stay_inside_and_cover_every_magnitude(tmp_path, base) -> None:
    space = {"a.log": {"log_uniform": [1e-4, 1.0]}, "b.int": {"integer": [2, 4]}, "c.uni": {"uniform": [0.25, 0.75]}}
    spec, _ = loaded(tmp_path, base, space=space)
    found = [draw(spec, number, {}) for number in range(400)]
    assert {params["b.int"] for params in found} == {2, 3, 4}
    assert all(0.25 <= params["c.uni"] <= 0.75 for params in found)
    magnitudes = [math.floor(-math.log10(params["a.log"])) for params in found]
    assert all(60 < magnitudes.count(magnitude) < 140 for magnitude in range(4))


def test_a_grid_has_every_combination_once(tmp_path, base) -> None:
    space = {"optimizer.lr": {"log_uniform": [1e-3, 1e-1], "points": 3}, "model.num_layers": {"integer": [1, 2]}}
    spec, _ = loaded(tmp_path, base, space=space, searcher={"name": "grid"}, budget={})
    found = grid(spec, base.model_dump(mode="json"))
    assert [tuple(params.values()) for params in found] == [
        *((0.001, 1), (0.001, 2), (0.01, 1), (0.01, 2), (0.1, 1), (0.1, 2))
    ]


CONDITIONAL = {
    "model.name": {"choice": ["sasrec", "hstu"]},
    "model.query_dim": {"choice": [4, 8], "when": {"model.name": "hstu"}},
    "model.activation": {"choice": ["relu", "gelu"], "when": {"model.name": ["sasrec", "esasrec"]}},
}


def test_conditions_are_branches(tmp_path, base) -> None:
    spec, _ = loaded(tmp_path, base, space=CONDITIONAL, searcher={"name": "grid"}, budget={})
    values = base.model_dump(mode="json")
    found = grid(spec, values)
    assert len(found) == 4
    assert all(("model.query_dim" in params) == (params["model.name"] == "hstu") for params in found)
    for number in range(20):
        drawn = draw(spec, number, values)
        assert set(drawn) == {"model.name", "model.query_dim" if drawn["model.name"] == "hstu" else "model.activation"}


def test_another_kind_of_model_leaves_the_settings_that_it_does_not_know(base) -> None:
    values = base.model_dump(mode="json")
    config = config_with(values, {"model.name": "hstu", "model.query_dim": 4, "model.time_bias": False}, "a trial")
    assert config.model.name == "hstu"
    assert config.model.dim == base.model.dim  # which both know
    assert values["model"]["name"] == "sasrec"  # the base is as it was


def test_settings_that_do_not_fit_together_are_an_error(base) -> None:
    with pytest.raises(ConfigError, match="must be divisible by num_heads"):
        config_with(base.model_dump(mode="json"), {"model.num_heads": 3}, "a trial")


def test_a_small_space_ends(tmp_path, base) -> None:
    spec, _ = loaded(tmp_path, base, space={"model.num_layers": {"choice": [1, 2, 3]}}, budget={"trials": 50})
    found = listed_params(spec, base.model_dump(mode="json"))
    assert sorted(params["model.num_layers"] for params in found) == [1, 2, 3]
