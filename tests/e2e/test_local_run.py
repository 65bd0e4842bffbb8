"""The commands of a run on one machine without Ray: train, kill, resume, evaluate, recommend, report."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import GENREC, genrec, kill_when, losses, records, refused, succeed

LOCAL = ("train", "walk.yaml", "--launcher", "local")


@pytest.fixture(scope="module")
def trained(prepared_project: Path) -> Path:
    """A finished run, for the commands that read one."""
    succeed(prepared_project, *LOCAL, "name=whole")
    return prepared_project


def test_a_run_learns_and_leaves_a_whole_directory(trained: Path) -> None:
    run = trained / "runs" / "whole"
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["test"]["metrics"]["hr@10"] > 0.9  # the next item is one of three
    assert evaluation["test"]["popularity"]["hr@10"] < 0.3
    assert evaluation["test"]["num_users"] == 1_000
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "environment.json", "metrics.jsonl", "export", "log.txt"}
    assert [r["resumed"] for r in records(run, "start")] == [False]
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_a_killed_run_goes_on_as_if_nothing_had_happened(trained: Path, project: Path) -> None:
    run = project / "runs" / "killed"
    kill_when(project, *LOCAL, "name=killed", ready=lambda: len(losses(run)) >= 50)
    assert not (run / "evaluation.json").exists()
    assert "Resuming" in succeed(project, *LOCAL, "name=killed")
    starts = records(run, "start")
    assert [s["resumed"] for s in starts] == [False, True]
    assert starts[1]["step"] % 20 == 0
    straight = losses(trained / "runs" / "whole")
    assert losses(run).keys() == straight.keys()
    # The same engine on the same number of workers: nothing but the order of float additions could differ.
    np.testing.assert_allclose(list(losses(run).values()), list(straight.values()), rtol=1e-6)
    metrics = [
        json.loads((r / "evaluation.json").read_text())["test"]["metrics"] for r in (run, trained / "runs/whole")
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-9)


def test_a_finished_run_is_not_trained_again(trained: Path, project: Path) -> None:
    succeed(project, *LOCAL, "name=again", "train.max_epochs=1")
    before = losses(project / "runs" / "again")
    succeed(project, *LOCAL, "name=again", "train.max_epochs=1")
    assert losses(project / "runs" / "again") == before
    assert len(records(project / "runs" / "again", "start")) == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(project: Path) -> None:
    run = project / "runs" / "damaged"
    kill_when(project, *LOCAL, "name=damaged", ready=lambda: len(losses(run)) >= 45)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shard = newest / "torch.pt"
    shard.write_bytes(shard.read_bytes()[:-100])
    said = " ".join(succeed(project, *LOCAL, "name=damaged").split())
    assert f"{newest.name} is not used: torch.pt has" in said
    assert records(run, "start")[-1]["step"] < int(newest.name.removeprefix("step_"))
    assert f"{newest.name} is not used: torch.pt has" in (run / "log.txt").read_text()
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "torch.pt").unlink()
    assert "can be used any more" in refused(project, *LOCAL, "name=damaged", exit_code=1)


def test_checkpoints_are_verified_and_exported_and_a_run_starts_from_one(trained: Path) -> None:
    newest = json.loads(succeed(trained, "checkpoints", "runs/whole", "--verify", "--json"))[-1]
    assert newest["status"] == "counts"
    succeed(trained, "checkpoints", "runs/whole", "--export", str(newest["step"]), "--output", "published")
    said = succeed(trained, *LOCAL, "name=warm", "train.max_epochs=1", "train.start_from=published")
    sentence = f"(step {newest['step']}): 100 of 100 items matched, 0 are new"
    assert sentence in " ".join(said.split())
    assert sentence in (trained / "runs" / "warm" / "log.txt").read_text()
    warm, cold = losses(trained / "runs" / "warm"), losses(trained / "runs" / "whole")
    assert warm[1] < 0.8 * cold[1]


def test_a_changed_config_is_refused_with_the_difference_and_fresh_starts_over(project: Path) -> None:
    succeed(project, *LOCAL, "name=guarded", "train.max_epochs=1")
    message = refused(project, *LOCAL, "name=guarded", "train.max_epochs=1", "optimizer.lr=0.02", exit_code=1)
    assert "optimizer.lr: 0.01 -> 0.02" in message
    assert "--fresh" in message
    succeed(project, *LOCAL, "name=guarded", "train.max_epochs=1", "optimizer.lr=0.02", "--fresh")
    assert len(records(project / "runs" / "guarded", "start")) == 1


def test_evaluate_repeats_what_training_reported(trained: Path) -> None:
    run = trained / "runs" / "whole"
    reported = json.loads((run / "evaluation.json").read_text())
    again = json.loads(succeed(trained, "evaluate", "runs/whole", "--json"))
    assert again["test"]["metrics"] == pytest.approx(reported["test"]["metrics"], abs=1e-6)
    assert "Popularity" in succeed(trained, "evaluate", "runs/whole", "--split", "test")


def test_a_refit_knows_the_validation_events_and_says_so(trained: Path) -> None:
    shown = succeed(trained, "refit", "runs/whole", "--launcher", "local")
    assert "fixed before training" in " ".join(shown.split())
    refit = trained / "runs" / "whole-refit"
    test = json.loads((refit / "evaluation.json").read_text())
    assert test.keys() == {"test"}
    assert test["test"]["protocol"]["refit_on_validation"] is True
    assert test["test"]["metrics"]["hr@10"] > 0.9
    best = json.loads((trained / "runs" / "whole" / "export" / "export.json").read_text())["info"]
    ended = json.loads((refit / "export" / "export.json").read_text())["info"]
    assert ended["epoch"] == pytest.approx(best["epoch"], abs=0.05)
    assert not records(refit, "validation")
    assert json.loads(succeed(trained, "evaluate", "runs/whole-refit", "--json")).keys() == {"test"}
    assert "trained on the validation events" in refused(trained, "evaluate", "runs/whole-refit", "--split=validation")
    assert "refit_on_validation is False and True" in refused(trained, "compare", "runs/whole", "runs/whole-refit")
    succeed(trained, "report", "runs/whole-refit")
    assert "trained on the validation events too" in (refit / "report.html").read_text()
    assert "is a refit itself" in refused(trained, "refit", "runs/whole-refit", "--launcher", "local")


def test_recommend_writes_every_user(trained: Path) -> None:
    succeed(trained, "recommend", "runs/whole", "--k", "5", "--output", "top", "--keep-seen")
    table = pq.read_table(trained / "top")
    assert table.num_rows == 1_000
    assert set(table.column_names) == {"user", "items", "scores"}
    walks = {
        int(line.split()[0]): list(map(int, line.split()[1:]))
        for line in (trained / "walks.txt").read_text().splitlines()
    }
    rows = zip(table["user"].to_pylist(), table["items"].to_pylist(), strict=True)
    near = [len({(walks[user][-1] + step) % 100 for step in (1, 2, 3)} & set(items)) for user, items in rows]
    assert np.mean(near) > 2.5  # of the three items that can come next


def test_report_is_one_page(trained: Path) -> None:
    succeed(trained, "report", "runs/whole")
    page = (trained / "runs" / "whole" / "report.html").read_text()
    assert "<svg" in page
    assert "leave-one-out" in page


def test_config_prints_what_would_run(project: Path) -> None:
    assert "max_epochs: 7" in succeed(project, "config", "walk.yaml", "train.max_epochs=7")
    assert json.loads(succeed(project, "config", "walk.yaml", "--json"))["train"]["max_epochs"] == 3


BAD = {
    "missing config": (("config", "absent.yaml"), "absent.yaml does not exist"),
    "unknown key": (("config", "walk.yaml", "train.max_epoch=3"), "did you mean max_epochs"),
    "wrong type": (("config", "walk.yaml", "train.max_epochs=many"), "train.max_epochs = 'many' is refused"),
    "stage 5": (("config", "walk.yaml", "engine={zero_stage: 5}"), "engine.zero_stage = 5 is refused"),
    "batch arithmetic": ((*LOCAL, "cluster.workers=3"), "must be a multiple of cluster.workers (3)"),
    "too small a batch": ((*LOCAL, "batch.tokens_per_step=16"), "sequence.max_length (20) must fit"),
    "missing log": (("prepare", "walk.yaml", "data.source.path=nowhere.txt", "data.prepared=other"), "nowhere.txt"),
    "changed data": ((*LOCAL, "data.min_user_events=3"), "min_user_events"),
    "cut-off beyond the catalogue": ((*LOCAL, "evaluation.ks=[10,500]"), "evaluation.ks has 500"),
    "query time without times": (
        (*LOCAL, "model={name: hstu}"),
        "model.time_bias=true needs event times",
    ),
    "not a run": (("evaluate", "prepared"), "is not a run directory"),
    "k beyond the catalogue": (("recommend", "runs/whole", "--k", "101", "--output", "never"), "101"),
    "workers without a launcher": ((*LOCAL, "cluster.workers=2"), "set cluster.workers=1"),
    "no GPU": ((*LOCAL, "cluster.gpus_per_worker=1"), "sees no GPU"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_gets_one_sentence(trained: Path, case: str) -> None:
    arguments, expected = BAD[case]
    if case == "no GPU" and os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU, so asking for one is no mistake")
    message = refused(trained, *arguments, *(["name=mistake"] if arguments[0] == "train" else []))
    assert expected in message


def test_a_run_directory_that_cannot_be_written(project: Path) -> None:
    (project / "blocked").write_text("a file where the folder should be")
    message = refused(project, *LOCAL, "runs_dir=blocked/runs", exit_code=1)
    assert "cannot be written" in message
    assert "runs_dir=" in message


def test_a_full_disk_names_the_checkpoint_and_the_run_resumes(project: Path) -> None:
    # A limit on the size of a file makes every larger write fail, as a full disk does.
    limited = f"ulimit -f 8; exec '{GENREC}' {' '.join(LOCAL)} name=full"
    done = subprocess.run(
        ["bash", "-c", limited], cwd=project, capture_output=True, text=True, timeout=240, check=False
    )
    message = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, message
    assert "could not be written" in message
    assert "Traceback" not in message
    assert genrec(project, *LOCAL, "name=full").returncode == 0
