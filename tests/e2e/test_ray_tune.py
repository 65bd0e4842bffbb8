"""`genrec tune` as a user runs it: a small sweep to its end; and killed, restarted, stopped early and handed over."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import losses, on_ray_with, records, refused, start, succeed, wait_until

SWEEP: dict[str, Any] = {
    "name": "sweep",
    "base": "walk.yaml",
    "fixed": {"cluster.cpus_per_worker": 0.25, "train.checkpoint_every_steps": None},
    "space": {"optimizer.lr": {"log_uniform": [0.003, 0.1]}},
    "metric": "hr@10",
    "budget": {"trials": 2},
}


def write_sweep(project: Path, **settings: Any) -> Path:
    """sweep.yaml in the project; `settings` replace those above, `fixed` adds to them."""
    fixed = SWEEP["fixed"] | settings.pop("fixed", {})
    values = SWEEP | settings | {"fixed": fixed}
    (project / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return project / "sweeps" / values["name"]


def books(sweep: Path) -> dict[str, Any]:
    """The content of sweep.json."""
    return json.loads((sweep / "sweep.json").read_text())


def table(sweep: Path) -> list[tuple[Any, ...]]:
    """What must not depend on kills: trials, their settings, their states and the steps that they have done."""
    return [
        (trial["number"], trial["params"], trial["state"], trial["progress"]["step"])
        for trial in books(sweep)["trials"]
    ]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_sweep_runs_and_its_best_config_trains(project: Path) -> None:
    sweep = write_sweep(project, fixed={"train.max_epochs": 1})
    said = succeed(project, "tune", "sweep.yaml", timeout_s=600)
    assert "2 finished" in said
    found = books(sweep)
    assert found["state"] == "finished"
    for trial in found["trials"]:
        progress = trial["progress"]
        assert 0 <= trial["best"]["hr@10"] <= 1
        assert trial["intervals"]["hr@10"][0] <= trial["best"]["hr@10"] <= trial["intervals"]["hr@10"][1]
        assert (progress["attempts"], progress["epoch"], trial["num_parameters"]) == (
            1,
            1.0,
            found["trials"][0]["num_parameters"],
        )
        assert progress["worker_seconds"] > 1
        assert records(sweep / "trials" / f"{trial['number']:04d}", "validation")
    best = yaml.safe_load(succeed(project, "config", "sweeps/sweep/best.yaml"))
    assert best["optimizer"]["lr"] == found["trials"][found["best"]]["params"]["optimizer.lr"]
    assert "hr@10" in (sweep / "report.html").read_text()


def test_bad_sweeps_are_refused_at_once(project: Path) -> None:
    write_sweep(project, space={"optimizer.lrr": {"uniform": [0, 1]}})
    assert "space.optimizer.lrr cannot be used in any trial" in refused(project, "tune", "sweep.yaml")
    write_sweep(project, metric="auc")
    assert "metric 'auc' is never reported" in refused(project, "tune", "sweep.yaml")


@pytest.mark.timeout(300)
def test_impossible_resources_are_refused_before_a_trial_starts(project: Path) -> None:
    sweep = write_sweep(project, fixed={"cluster.cpus_per_worker": 500})
    assert "must leave 1 of the cluster's" in refused(project, "tune", "sweep.yaml")
    assert not (sweep / "trials").exists()


def train_worker(command: int) -> psutil.Process | None:
    """A training worker below a command, or None while there is none."""
    for process in psutil.Process(command).children(recursive=True):
        if process.name().startswith("ray::RayTrainWo"):
            return process
    return None


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_a_sweep_survives_kills_of_its_command_and_of_a_worker(project: Path) -> None:
    """SIGKILL twice to the command and once to a worker: the same trials, each trained once, as in a calm sweep."""
    settings = {"train.max_epochs": 30, "cluster.workers": 2}
    sweep = write_sweep(project, name="killed", fixed=settings, budget={"trials": 3})
    trials = [sweep / "trials" / f"{number:04d}" for number in range(3)]
    for trial in trials[:2]:
        with start(project, "tune", "sweep.yaml") as command:
            wait_until(lambda trial=trial: len(losses(trial)) >= 60, command, 900)
            command.kill()
    with start(project, "tune", "sweep.yaml") as command:
        wait_until(lambda: len(losses(trials[2])) >= 60, command, 900)
        victim = train_worker(command.pid)
        assert victim is not None
        victim.kill()
        assert command.wait(900) == 0
    calm = write_sweep(project, name="calm", fixed=settings, budget={"trials": 3})
    succeed(project, "tune", "sweep.yaml", timeout_s=1_500)
    assert table(sweep) == table(calm)
    for trial in trials:
        starts = records(trial, "start")
        assert len(starts) == 2  # each was under way at one of the kills
        assert starts[1]["step"] > 0  # and went on from its own checkpoint
    assert [len(books(folder)["spans"]) for folder in (sweep, calm)] == [3, 1]
    again = succeed(project, "tune", "sweep.yaml")
    assert "running" not in again  # nothing is run twice


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_trial_that_dies_as_a_whole_gives_its_cpus_back(project: Path) -> None:
    """As when memory runs out: its process, Ray Train's controller and what watches that are killed at once."""
    settings = {"train.max_epochs": 20, "train.checkpoint_every_steps": 10, "cluster.workers": 2}
    sweep = write_sweep(project, fixed=settings | {"cluster.cpus_per_worker": 1}, budget={"trials": 1})
    trial = sweep / "trials" / "0000"
    names = ("ray::ImplicitFu", "ray::TrainContr", "ray::PlacementG")
    # Of three CPUs the workers take two, and without those the next ones would wait for ever.
    with start(project, "tune", "sweep.yaml", program=on_ray_with(3)) as command:
        wait_until(lambda: len(losses(trial)) >= 30, command, 900)
        group = [p for p in psutil.Process(command.pid).children(recursive=True) if p.name().startswith(names)]
        assert len({process.name()[:15] for process in group}) == 3, group
        for process in group:
            process.kill()
        assert command.wait(900) == 0
    (found,) = books(sweep)["trials"]
    assert (found["state"], found["progress"]["attempts"]) == ("finished", 2)
    assert records(trial, "start")[1]["step"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_bad_trial_is_stopped_early_and_its_workers_end(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASHA ends a trial whose learning rate is nothing, and the next trial gets its place: its CPUs too.

    Of three CPUs each trial's workers take two. Without a dashboard Ray Train does not free those of a stopped trial.
    """
    monkeypatch.setenv("GENREC_TEST_SWEEP", str(project))
    sweep = write_sweep(
        project,
        fixed={"train.max_epochs": 8, "cluster.workers": 2, "cluster.cpus_per_worker": 1},
        space={"optimizer.lr": {"choice": [0.01, 0.02, 0.0000001, 0.015]}},
        searcher={"name": "grid"},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction": 2},
        budget={},
    )
    succeed(project, "tune", "sweep.yaml", timeout_s=1_500, program=on_ray_with(3))
    states = {trial["params"]["optimizer.lr"]: trial for trial in books(sweep)["trials"]}
    assert len(states) == 4
    bad = states[0.0000001]
    assert bad["state"] == "stopped"
    assert bad["progress"]["epoch"] < 8
    assert states[0.01]["state"] == "finished"
    for process in psutil.process_iter(["name", "environ"]):
        if (process.info["environ"] or {}).get("GENREC_TEST_SWEEP") == str(project):
            assert not process.info["name"].startswith("ray::RayTrainWo"), process


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_trial_whose_loss_is_no_number_has_failed_and_the_others_go_on(project: Path) -> None:
    space = {"optimizer.lr": {"choice": [0.01, 1e38]}}
    sweep = write_sweep(project, space=space, searcher={"name": "grid"}, budget={"retries": 2})
    said = succeed(project, "tune", "sweep.yaml", timeout_s=900)
    good, bad = books(sweep)["trials"]
    assert (good["state"], bad["state"]) == ("finished", "failed")
    assert bad["progress"]["attempts"] == 1  # trying again cannot mend it
    assert bad["reason"] in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.timeout(2_400)
def test_a_population_hands_its_checkpoints_over(project: Path) -> None:
    """The worse of two goes on, from the other's checkpoint, in a run of its own."""
    sweep = write_sweep(
        project,
        fixed={"train.max_epochs": 12},
        space={"optimizer.lr": {"choice": [0.01, 0.0000001]}},
        scheduler={"name": "pbt", "interval_epochs": 2, "quantile": 0.5, "resample": 0.0},
    )
    succeed(project, "tune", "sweep.yaml", timeout_s=1_500, program=on_ray_with(4))
    assert books(sweep)["max_concurrent"] >= 2
    trials = books(sweep)["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    taken = [(trial, entry) for trial in trials for entry in trial["progress"]["took_over"]]
    assert taken
    for trial, entry in taken:
        assert entry["from"].partition("-")[0] != f"{trial['number']:04d}"
    trial, entry = taken[-1]
    run = sweep / "trials" / f"{trial['number']:04d}-{trial['progress']['life']}"
    assert records(run, "start")[0]["step"] == trial["progress"]["took_over"][-1]["step"]
    assert records(run, "start")[0]["resumed"]
