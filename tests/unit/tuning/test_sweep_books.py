"""The sweep's own folder: what may change between two starts, best.yaml, the table, and the list of a retraining."""

import io
import shutil

import pytest
import yaml
from rich.console import Console
from tiny_sweep import director_of, finish, loaded

from genrec.cli_tune import _end
from genrec.config import load_config
from genrec.data.manifest import load_manifest
from genrec.errors import DataError, RunError
from genrec.reporting.sweep_record import read_record
from genrec.reporting.sweep_sections import verdict
from genrec.run_dir import run_dir_of
from genrec.tuning import sweep
from genrec.tuning.admission import trial_config
from genrec.tuning.records import Sweep, SweepDir, read_sweep
from genrec.tuning.retrain import listed_trials, retrain_best
from genrec.tuning.sweep import _finish, alone, keep_spec
from genrec.tuning.table import summary, sweep_table


def test_another_sweep_in_the_same_folder_is_refused_and_a_larger_budget_is_not(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    keep_spec(director.folder, spec, loaded_base)
    larger, _ = loaded(tmp_path, base, budget={"trials": 9}, max_concurrent=3)
    keep_spec(director.folder, larger, loaded_base)
    other, _ = loaded(tmp_path, base, seed=5)
    with pytest.raises(RunError, match=r"is another one.*\n.*sweep.seed: 1 -> 5"):
        keep_spec(director.folder, other, loaded_base)


def test_a_sweep_of_before_a_setting_existed_goes_on(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    folder = director_of(spec, loaded_base).folder
    keep_spec(folder, spec, loaded_base)
    values = yaml.safe_load(folder.spec_path.read_text())
    del values["base"]["engine"]["matmul_precision"]
    values["base"]["train"]["log_windows"] = values["base"]["tracking"].pop("log_windows")
    folder.spec_path.write_text(yaml.safe_dump(values))
    keep_spec(folder, spec, loaded_base)


def test_two_commands_do_not_run_one_sweep(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    with alone(director.folder), pytest.raises(RunError, match="Another command is running"), alone(director.folder):
        pass


def test_a_deletion_that_was_killed_is_finished_by_the_next_start(tmp_path, base, monkeypatch) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    keep_spec(director.folder, spec, loaded_base)
    finish(director, director.next_trial(), 0.25)
    (director.folder.root / "zz").mkdir()
    seen: list[bool] = []
    monkeypatch.setattr(sweep, "_run", lambda folder, *_: seen.append(folder.record_path.exists()))
    arguments = (spec, loaded_base, load_manifest(loaded_base.data.prepared), lambda _: None, lambda _: None)

    def killed(_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        sweep.tune(*arguments, fresh=True)
    director.save()  # its books, should they be among what was left
    sweep.tune(*arguments)
    assert seen == [False]
    assert sorted(path.name for path in director.folder.root.iterdir()) == ["lock", "sweep.yaml"]
    director.save()
    sweep.tune(*arguments)
    assert seen == [False, True]


def test_a_deletion_takes_the_checkpoints_that_are_elsewhere(tmp_path, base) -> None:
    """Or the first trial of the new sweep would go on from those of the old one."""
    kept = tmp_path / "kept"
    spec, loaded_base = loaded(tmp_path, base, fixed={"train.checkpoint_dir": str(kept)})
    director = director_of(spec, loaded_base)
    trial = director.next_trial()
    config = trial_config(director.folder, director.gate.base, trial.number, trial.params)
    run = run_dir_of(config)
    run.create(config)
    checkpoint = kept / "tiny" / "0000" / "step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    other = kept / "other" / "0000" / "step_00000010"
    shutil.copytree(checkpoint, other)
    sweep._delete(director.folder)
    assert not checkpoint.exists()
    assert other.is_dir()


def test_damaged_books_get_a_sentence(tmp_path, base) -> None:
    folder = director_of(*loaded(tmp_path, base)).folder
    for text in ("{", "[]", '{"trials": [], "nonsense": 1}', '{"trials": [{"progress": {}}]}'):
        folder.record_path.write_text(text)
        with pytest.raises(DataError, match="is damaged, or of another version of genrec"):
            read_sweep(folder)


@pytest.mark.parametrize("text", ["", "sweep: {name: x}", "[1]", "sweep: 3\nbase: 4"])
def test_a_damaged_spec_gets_a_sentence(tmp_path, base, text) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    folder = director_of(spec, loaded_base).folder
    folder.spec_path.write_text(text)
    with pytest.raises(DataError, match=r"sweep.yaml is damaged, so nobody can say which sweep this is"):
        keep_spec(folder, spec, loaded_base)


def test_trials_are_one_group_at_the_tracker_and_keep_their_checkpoints_apart(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base, fixed={"train.checkpoint_dir": "s3://bucket/kept/"})
    trials = sweep.base_of_trials(spec, loaded_base)
    assert trials.tracking.wandb_group == "tiny"
    assert trials.train.checkpoint_dir == "s3://bucket/kept/tiny"
    assert trials.data.prepared == base.data.prepared


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


def retrained_with(director, loaded_base, listed, *values: float):
    """Books of a retraining, whose trials reach `values`."""
    folder = SweepDir(director.folder.retrained_path)
    folder.root.mkdir(exist_ok=True)
    manifest = load_manifest(loaded_base.data.prepared)
    again = sweep.director_of(director.spec, loaded_base, manifest, lambda _: None, folder=folder, listed=listed)
    again.open()
    for value in values:
        finish(again, again.next_trial(), value)
    return again


def test_the_best_is_what_fresh_seeds_say(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    while (trial := director.next_trial()) is not None:
        finish(director, trial, 0.1 * trial.number)
    director.close()
    lucky, steady = director.sweep.trials[3], director.sweep.trials[2]
    listed = listed_trials(spec, loaded_base, [lucky, steady], 2)
    again = retrained_with(director, loaded_base, listed, 0.1, 0.1, 0.15, 0.17, 0.2)
    assert [trial.group for trial in again.sweep.trials] == ["base", "base", "0003", "0003", "0002"]
    again.close()
    _finish(director, loaded_base)
    assert load_config(director.folder.best_path).optimizer.lr == lucky.params["optimizer.lr"]  # it is not over

    finish(again, again.next_trial(), 0.3)
    assert again.next_trial() is None
    again.close()
    _finish(director, loaded_base)
    best = load_config(director.folder.best_path)
    assert (best.optimizer.lr, best.seed) == (steady.params["optimizer.lr"], loaded_base.seed)
    assert "Trial 0002 of sweep tiny: ndcg@10 0.25 on validation, its mean over 2 fresh seeds" in (
        director.folder.best_path.read_text()
    )


def test_a_retraining_is_of_the_sweep_that_the_file_says(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    manifest, tell = load_manifest(loaded_base.data.prepared), (lambda _: None, lambda _: None)
    with pytest.raises(RunError, match="has not come to its end"):
        retrain_best(spec, loaded_base, manifest, 1, 2, tell)
    assert not spec.root.exists()
    director = director_of(spec, loaded_base)
    keep_spec(director.folder, spec, loaded_base)
    finish(director, director.next_trial(), 0.25)
    with pytest.raises(RunError, match="has not come to its end"):
        retrain_best(spec, loaded_base, manifest, 1, 2, tell)
    director.close()
    changed = loaded(tmp_path, base, fixed={"train.max_epochs": 7})
    with pytest.raises(RunError, match=r"is another one.*\n.*max_epochs: 3 -> 7"):
        retrain_best(*changed, manifest, 1, 2, tell)
    with alone(director.folder), pytest.raises(RunError, match="Another command is running"):
        retrain_best(spec, loaded_base, manifest, 1, 2, tell)


def test_a_retraining_has_the_budget_of_its_sweep_once_more(tmp_path, base, monkeypatch) -> None:
    budget = {"trials": 4, "hours": 2, "worker_hours": 3, "retries": 5}
    spec, loaded_base = loaded(tmp_path, base, budget=budget)
    director = director_of(spec, loaded_base)
    keep_spec(director.folder, spec, loaded_base)
    while (trial := director.next_trial()) is not None:
        finish(director, trial, 0.1 * trial.number, worker_seconds=2_700.0)
    director.close()
    given = []

    def run_listed(folder, plain, *_):
        given.append((folder, plain))
        return director.sweep

    monkeypatch.setattr("genrec.tuning.retrain.run_listed", run_listed)
    tell = (lambda _: None, lambda _: None)
    retrain_best(spec, loaded_base, load_manifest(loaded_base.data.prepared), 1, 3, tell)
    ((folder, plain),) = given
    assert plain.budget == spec.budget.model_copy(update={"trials": 6})
    listed = listed_trials(spec, loaded_base, [director.sweep.trials[3]], 3)
    folder.root.mkdir()
    again = sweep.director_of(
        plain, loaded_base, load_manifest(loaded_base.data.prepared), lambda _: None, folder=folder, listed=listed
    )
    again.open()
    finish(again, again.next_trial(), 0.1, worker_seconds=10_800.0)  # the search's own hours do not count
    assert again.next_trial() is None
    again.close()
    assert (again.sweep.state, again.sweep.reason) == ("out of budget", "budget.worker_hours (3) is used up")
    assert "budget.worker_hours (3) is used up" in summary(again.sweep)
    assert verdict(read_record(director.folder.root)) == (
        "The retraining is not over: 1 of its 6 trainings are (budget.worker_hours (3) is used up). The same command "
        "goes on with it."
    )


def test_an_interrupted_command_ends_as_one() -> None:
    books = Sweep("s", ["loss"], ["min"], 1, {}, {}, state="out of budget")
    _end(books)
    books.state = "interrupted"
    with pytest.raises(KeyboardInterrupt):
        _end(books)


def test_the_table_shows_states_settings_and_reasons(tmp_path, base) -> None:
    director = director_of(*loaded(tmp_path, base))
    finish(director, director.next_trial(), 0.25)
    finish(director, director.next_trial(), outcome="failed", error="The disk is full.")
    director.next_trial()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(sweep_table(director.sweep))
    text = console.export_text()
    assert text.split()[:7] == ["trial", "state", "lr", "dropout", "ndcg@10", "step", "time"]
    assert "0000*" in text and "0.2500" in text
    assert "0001 failed: The disk is full." in text
    assert "1 finished, 1 failed, 1 running" in text


def test_a_retraining_has_the_base_and_the_best_with_the_same_fresh_seeds(tmp_path, base) -> None:
    spec, loaded_base = loaded(tmp_path, base)
    director = director_of(spec, loaded_base)
    chosen = [director.next_trial(), director.next_trial()]
    listed = listed_trials(spec, loaded_base, chosen, 2)  # trial 0 is the base
    assert [group for group, _ in listed] == ["base", "base", "0001", "0001"]
    assert [params["seed"] for _, params in listed] == [1_001, 1_002] * 2
    assert {**chosen[1].params, "seed": 1_002} == listed[3][1]
