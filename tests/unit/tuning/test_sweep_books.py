"""The sweep's own folder: what may change between two starts, best.yaml, the table, and the list of a retraining."""

import io

import pytest
from rich.console import Console
from tiny_sweep import director_of, finish, loaded

from genrec.config import load_config
from genrec.errors import RunError
from genrec.tuning.retrain import listed_trials
from genrec.tuning.sweep import _finish, alone, keep_spec, spec_of_folder
from genrec.tuning.table import sweep_table


def test_another_sweep_in_the_same_folder_is_refused_and_a_larger_budget_is_not(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    keep_spec(director.folder, spec, loaded_base)
    larger, _ = loaded(tmp_path, base, budget={"trials": 9}, max_concurrent=3)
    keep_spec(director.folder, larger, loaded_base)
    assert spec_of_folder(spec.root) == (spec, loaded_base)
    other, _ = loaded(tmp_path, base, seed=5)
    with pytest.raises(RunError, match=r"is another one.*\n.*sweep.seed: 1 -> 5"):
        keep_spec(director.folder, other, loaded_base)


def test_two_commands_do_not_run_one_sweep(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    with alone(director.folder), pytest.raises(RunError, match="Another command is running"), alone(director.folder):
        pass


def test_the_best_is_a_config_that_train_takes(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    while (trial := director.next_trial()) is not None:
        finish(director, trial, 0.1 * trial.number)
    director.close()
    _finish(director, loaded_base)
    best = load_config(director.folder.best_path)
    params = director.sweep.trials[3].params
    assert (best.optimizer.lr, best.model.dropout) == (params["optimizer.lr"], params["model.dropout"])
    assert best.name == "tiny-best"
    changed = best.model_copy(update={"name": base.name, "optimizer": base.optimizer, "model": base.model})
    assert changed == loaded_base  # nothing else is changed
    assert director.folder.best_path.read_text().startswith("# genrec train ")


def test_the_table_shows_states_settings_and_reasons(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    finish(director, director.next_trial(), 0.25)
    finish(director, director.next_trial(), outcome="failed", error="The disk is full.")
    director.next_trial()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(sweep_table(director.sweep))
    text = console.export_text()
    assert "0000*" in text and "0.2500" in text
    assert "0001 failed: The disk is full." in text
    assert "1 finished, 1 failed, 1 running" in text


def test_a_retraining_has_the_base_and_the_best_with_the_same_fresh_seeds(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    chosen = [director.next_trial(), director.next_trial()]
    listed = listed_trials(spec, loaded_base, chosen[1:], 2)
    assert [group for group, _ in listed] == ["base", "base", "0001", "0001"]
    assert [params["seed"] for _, params in listed] == [1_001, 1_002] * 2
    assert {**chosen[1].params, "seed": 1_002} == listed[3][1]
