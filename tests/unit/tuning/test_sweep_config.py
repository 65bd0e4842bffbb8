"""A sweep file that cannot work gets a sentence before anything starts."""

import pytest
from tiny_sweep import loaded, write_sweep_file

from genrec.errors import ConfigError
from genrec.tuning.config import load_sweep
from genrec.tuning.space import draw
from genrec.tuning.sweep import check_sweep


def test_a_good_sweep(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base, metric=["ndcg@10", "num_parameters"], searcher={"name": "optuna"})
    assert spec.metrics == ("ndcg@10", "num_parameters")
    assert spec.modes == ("max", "min")
    assert loaded_base == base
    check_sweep(spec, base)


def test_what_is_fixed_is_in_the_base(tmp_path, base) -> None:
    _, changed = loaded(tmp_path, base, fixed={"train.max_epochs": 7, "model": {"name": "hstu", "time_bias": False}})
    assert changed.train.max_epochs == 7
    assert changed.model.name == "hstu"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"optimizer.lr": {"choice": []}}}, "choice is empty, so there is nothing to try"),
        ({"space": {"optimizer.lr": {"choice": [1], "uniform": [0, 1]}}}, "exactly one of choice, uniform"),
        ({"space": {"optimizer.lr": {"log_uniform": [0, 1]}}}, "must begin above 0"),
        ({"space": {"optimizer.lr": {"uniform": [1, 0]}}}, "from the smaller to the larger"),
        ({"space": {"data.prepared": {"choice": ["a"]}}}, "cannot search data, because all trials share one"),
        ({"space": {"name": {"choice": ["a"]}}}, "cannot search name"),
        ({"space": {"semantic_ids.tokenizer.sizes": {"choice": [[8], [16]]}}}, "search semantic_ids.path"),
        ({"metric": "auc"}, "metric 'auc' is never reported by a trial .* it reports hr@1, hr@5"),
        ({"metric": "ndcg@20"}, "add its cut-off to evaluation.ks"),
        ({"budget": {}}, "budget.trials is required with searcher random"),
        ({"fixed": {"optimizer.lr": 0.1}}, "optimizer.lr is in fixed, with one value for all trials, and in space"),
        ({"metric": "loss", "mode": "max"}, "mode is max for loss, so the worst trial would be the best"),
        ({"metric": ["ndcg@10", "loss"], "mode": ["max", "max"]}, "mode is max for loss"),
        ({"scheduler": {"name": "pbt"}, "searcher": {"name": "grid"}}, "scheduler pbt draws its population at random"),
        ({"metric": ["ndcg@10", "hr@10"], "scheduler": {"name": "asha"}}, "several metrics .* have no one order"),
        (
            {"metric": ["ndcg@10", "hr@10"], "searcher": {"name": "optuna"}, "scheduler": {"name": "asha"}},
            "several metrics .* have no one order",
        ),
        ({"space": {"evaluation.filter_seen": {"choice": [True, False]}}}, "cannot search evaluation.filter_seen"),
        ({"space": {"evaluation": {"choice": [{"ks": [10]}]}}}, "cannot search evaluation.ks"),
        ({"space": {"train": {"choice": [{"max_epochs": 2}]}}}, "cannot search train.start_from"),
        ({"space": {"optimizer.lr": {"choice": [0.1, 0.2, 0.1]}}}, "has a value twice"),
        ({"space": {"optimizer.lr": {"choice": [0.1], "points": 3}}}, r"points \(3\) divides a range"),
        ({"space": {"model.dim": {"integer": [1.5, 3]}}}, "valid integer"),
        ({"scheduler": {"name": "pbt"}, "budget": {"trials": 1}}, "one has none to learn from"),
        ({"metric": "NDCG@10"}, "metric 'NDCG@10' is never reported"),
        ({"metric": []}, "must name different metrics"),
        ({"budget": {"trials": 4, "hours": 0}}, "budget.hours = 0 is refused"),
        ({"name": "a" * 96}, "at most 95 characters"),
        ({"name": "../up"}, "name = '../up' is refused"),
        ({"space": {"optimizer.lr": {"uniform": [0, float("inf")]}}}, "input should be a finite number"),
        ({"scheduler": {"name": "hyperband"}}, "'hyperband' is not known; one of asha, median, none, pbt"),
        ({"sapce": {}}, "sapce is not a known setting; did you mean space"),
        ({"fixed": {"model.dimm": 8}}, "model.dimm is not a known setting"),
        ({"metric": ["ndcg@10", "hr@10"], "mode": "max"}, "mode .* must be of the form of metric"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, base, settings, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        loaded(tmp_path, base, **settings)


def test_a_base_that_is_not_there_is_refused(tmp_path, base) -> None:
    path = write_sweep_file(tmp_path, base)
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(ConfigError, match=r"base\.yaml does not exist"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"space": {"optimizer.lrr": {"uniform": [0, 1]}}}, "space.optimizer.lrr cannot be used .* did you mean lr"),
        ({"space": {"model.dropout": {"uniform": [2, 3]}}}, "space.model.dropout cannot be used in any trial"),
        (
            {"space": {"model.dim": {"choice": [8], "when": {"model.name": "hstu"}}}},
            "space.model.dim is never searched",
        ),
        (
            {"space": {"model.dim": {"choice": [8], "when": {"model.sort": "hstu"}}}},
            "names model.sort, which must be a setting",
        ),
        (
            {"space": {"model.dim": {"choice": [8, 16]}}, "scheduler": {"name": "pbt"}},
            "scheduler pbt cannot change model.dim while a trial trains",
        ),
        ({"searcher": {"name": "grid"}}, "which a grid can only try with `points`"),
    ],
)
def test_a_space_that_no_trial_can_use_is_refused(tmp_path, base, settings, sentence) -> None:
    spec, loaded_base = loaded(tmp_path, base, **settings)
    with pytest.raises(ConfigError, match=sentence):
        check_sweep(spec, loaded_base)


def test_settings_that_are_good_one_by_one_and_not_together(tmp_path, base) -> None:
    space = {"model.dim": {"choice": [9]}, "model.num_heads": {"choice": [2]}}
    spec, loaded_base = loaded(tmp_path, base, space=space)
    with pytest.raises(ConfigError, match=r"because of the settings beside it: .*must be divisible by num_heads"):
        check_sweep(spec, loaded_base)


def test_a_setting_that_is_rarely_searched_is_good(tmp_path, base) -> None:
    space = {
        "optimizer.warmup_steps": {"integer": [0, 499]},
        "model.dropout": {"uniform": [0, 0.5], "when": {"optimizer.warmup_steps": 499}},
    }
    spec, loaded_base = loaded(tmp_path, base, space=space)
    first = [draw(spec, number, {}) for number in range(64)]
    assert not [params for params in first if "model.dropout" in params]
    check_sweep(spec, loaded_base)


@pytest.mark.parametrize(
    "scheduler",
    [{"name": "asha", "grace_epochs": 3}, {"name": "median", "grace_epochs": 4}, {"name": "pbt", "interval_epochs": 3}],
)
def test_a_scheduler_that_comes_too_late_is_refused(tmp_path, base, scheduler) -> None:
    space = {"optimizer.lr": {"uniform": [0.1, 0.2]}}
    spec, loaded_base = loaded(tmp_path, base, space=space, scheduler=scheduler)  # of 3 epochs
    with pytest.raises(ConfigError, match=r"first compares trials after \d epochs .* end after train.max_epochs \(3\)"):
        check_sweep(spec, loaded_base)


def test_trials_keep_the_model_that_is_best_by_the_metric_of_the_sweep(tmp_path, base) -> None:
    assert base.evaluation.metric == "ndcg@10"
    assert loaded(tmp_path, base, metric="hr@5")[1].evaluation.metric == "hr@5"
    assert loaded(tmp_path, base, metric="loss")[1].evaluation.metric == "ndcg@10"
    fixed = {"evaluation.metric": "hr@1"}
    assert loaded(tmp_path, base, metric="hr@5", fixed=fixed)[1].evaluation.metric == "hr@1"


def test_the_unknown_setting_is_named_beside_good_ones(tmp_path, base) -> None:
    space = {"optimizer.lr": {"uniform": [0.1, 0.2]}, "modell.dim": {"choice": [8]}}
    spec, loaded_base = loaded(tmp_path, base, space=space)
    with pytest.raises(ConfigError, match=r"space\.modell\.dim"):
        check_sweep(spec, loaded_base)
