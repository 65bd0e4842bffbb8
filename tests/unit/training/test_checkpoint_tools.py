"""`genrec checkpoints`: what it lists, what it calls damaged, what it finds different, and that an export can serve."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from genrec.cli import app
from genrec.config import ExperimentConfig
from genrec.data.manifest import Part, load_manifest, save_manifest
from genrec.errors import ConfigError, DataError, RunError
from genrec.inference.export import read_export
from genrec.inference.recommender import Recommender
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint import FINISHED_FILE, STATE_FILE
from genrec.training.local import fit
from genrec.training.start import open_run_directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_prepared, make_config) -> Path:
    """A run with a checkpoint for each of its three validations; its folder."""
    folder = tmp_path_factory.mktemp("tools")
    generator = np.random.default_rng(0)
    prepared = write_prepared(folder / "set", [generator.integers(1, 30, 12).tolist() for _ in range(40)], num_items=30)
    config = make_config(
        prepared,
        "engine={name: torch}",
        "batch={tokens_per_step: 200, micro_batches_per_step: 1}",
        "train={max_epochs: 3, keep_checkpoints: 3}",
        "optimizer.lr=0.02",
    )
    _train(config)
    return run_dir_of(config).root


def _train(config: ExperimentConfig) -> None:
    fit(config, open_run_directory(config, fresh=True, say=lambda _: None), time.time())


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(run / "checkpoints")]


def call(run: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["checkpoints", str(run), *options], env={"COLUMNS": "120"})


def told(run: Path, *options: str) -> list[dict]:
    return json.loads(call(run, *options, "--json").stdout)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_the_list_has_what_state_json_says(run: Path) -> None:
    rows = told(run)
    assert [row["step"] for row in rows] == steps(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = {r["step"]: r["metrics"]["ndcg@10"] for r in records if r["kind"] == "validation"}
    assert {row["step"]: row["metric"] for row in rows} == metrics
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    newest = rows[-1]
    assert newest["best_metric"] == max(metrics.values())
    assert (newest["workers"], newest["engine"], newest["status"]) == (1, "torch fp32", "counts")
    files = [p for p in (run / "checkpoints" / newest["name"]).rglob("*") if p.is_file()]
    assert newest["num_bytes"] == sum(p.stat().st_size for p in files)
    assert abs(newest["time_s"] - time.time()) < 600
    table = call(run).stdout
    assert f"{newest['best_metric']:.4f}" in table
    assert "1 × torch fp32" in table


def test_verify_reads_every_file_and_fails_when_one_is_damaged(run: Path) -> None:
    assert call(run, "--verify").exit_code == 0
    first, second, third = list_checkpoints(run / "checkpoints")
    flip(first / "torch.pt")
    (second / STATE_FILE).unlink()
    (third / FINISHED_FILE).unlink()
    (third / "rank_00000.json").unlink()
    assert [row["status"] for row in told(run)] == ["counts", "damaged", "unfinished"]
    found = call(run, "--verify", "--json")
    assert found.exit_code == 1
    assert [row["status"] for row in json.loads(found.stdout)] == ["damaged", "damaged", "unfinished"]
    assert "SHA-256" in call(run, "--verify").stdout.replace("\n", " ")
    assert call(run).exit_code == 0  # only --verify judges


def test_what_is_older_than_a_good_one_is_damaged_and_not_unfinished(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        (path / FINISHED_FILE).unlink()
    (list_checkpoints(run / "checkpoints")[0] / "rank_00000.json").unlink()
    assert [row["status"] for row in told(run)] == ["damaged", "counts", "counts"]


def test_what_is_only_unfinished_is_not_damaged(run: Path) -> None:
    newest = list_checkpoints(run / "checkpoints")[-1]
    for name in (FINISHED_FILE, "rank_00000.json"):
        (newest / name).unlink()
    assert call(run, "--verify").exit_code == 0


def test_compare_shows_progress_settings_and_weights(run: Path) -> None:
    first, last = steps(run)[0], steps(run)[-1]
    found = json.loads(call(run, "--compare", str(first), "latest", "--json").stdout)
    assert f"step: {first} -> {last}" in found["progress"]
    assert found["settings"] == found["versions"] == found["only_first"] == found["only_second"] == []
    weights = [
        torch.load(run / "checkpoints" / f"step_{step:08d}" / "torch.pt", weights_only=True)["model"]
        for step in (first, last)
    ]
    differences = {w["name"]: w for w in found["weights"]}
    assert differences.keys() == weights[0].keys()
    for name, difference in differences.items():
        apart = weights[1][name] - weights[0][name]
        assert difference["largest"] == pytest.approx(float(apart.abs().max()))
        assert difference["relative"] == pytest.approx(float(apart.norm() / weights[0][name].norm()))
    largest = [w["largest"] for w in found["weights"]]
    assert largest == sorted(largest, reverse=True)
    assert found["weights"][0]["name"] in call(run, "--compare", str(first), str(last)).stdout


def test_a_checkpoint_of_another_run_is_compared_by_its_folder(run: Path, tmp_path: Path, make_config) -> None:
    prepared = json.loads((list_checkpoints(run / "checkpoints")[0] / STATE_FILE).read_text())["config"]["data"]
    config = make_config(
        Path(prepared["prepared"]),
        "name=other",
        f"runs_dir={tmp_path}",
        "engine={name: torch}",
        "model.dim=16",
        "model.num_layers=2",
        "train={max_epochs: 1}",
    )
    _train(config)
    other = list_checkpoints(tmp_path / "other" / "checkpoints")[0]
    found = json.loads(call(run, "--compare", "latest", str(other), "--json").stdout)
    assert "model.dim: 8 -> 16" in found["settings"]
    assert {w["largest"] for w in found["weights"] if w["name"] == "item_table.weight"} == {None}
    assert found["only_second"]
    assert not found["only_first"]


def test_an_exported_checkpoint_recommends_as_the_run_does(run: Path, tmp_path: Path) -> None:
    best = read_export(run / "export")
    assert call(run, "--export", str(best.info["step"]), "--output", str(tmp_path / "out")).exit_code == 0
    exported = read_export(tmp_path / "out")
    assert exported.info == best.info
    assert exported.items == best.items
    assert exported.state_dict.keys() == best.state_dict.keys()
    assert all(torch.equal(exported.state_dict[name], weight) for name, weight in best.state_dict.items())
    assert Recommender.load(tmp_path / "out").recommend([10, 20], k=3) == Recommender.load(run).recommend([10, 20], k=3)


def test_an_export_replaces_nothing_without_being_told(run: Path, tmp_path: Path) -> None:
    assert call(run, "--export", "latest").exit_code == 0
    folder = run / "exports" / list_checkpoints(run / "checkpoints")[-1].name
    assert read_export(folder).info["step"] == steps(run)[-1]
    assert isinstance(call(run, "--export", "latest").exception, DataError)
    assert call(run, "--export", str(steps(run)[0]), "--output", str(folder), "--overwrite").exit_code == 0
    assert read_export(folder).info["step"] == steps(run)[0]
    refused = call(run, "--export", "latest", "--output", str(run), "--overwrite").exception
    assert "not an export" in str(refused)


def test_items_come_from_the_export_when_the_prepared_set_is_gone(run: Path, tmp_path: Path) -> None:
    for path in (run / "config.yaml", *(p / STATE_FILE for p in list_checkpoints(run / "checkpoints"))):
        path.write_text(path.read_text().replace("tools0/set", "tools0/gone"))
    for path in list_checkpoints(run / "checkpoints"):
        state, listed = path / STATE_FILE, path / "rank_00000.json"
        files = json.loads(listed.read_text())
        files[STATE_FILE] = {
            "num_bytes": state.stat().st_size,
            "sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
        }
        listed.write_text(json.dumps(files))
    assert call(run, "--export", "latest", "--output", str(tmp_path / "out")).exit_code == 0
    assert read_export(tmp_path / "out").items == read_export(run / "export").items
    (run / "export" / "export.json").unlink()
    assert "prepare the data set again" in str(call(run, "--export", "latest").exception)


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        (("--verify", "--export", "1"), ConfigError, "give one of them"),
        (("--output", "x"), ConfigError, "add --export STEP"),
        (("--export", "999"), DataError, "There is no checkpoint 999; "),
        (("--compare", "latest", "nowhere"), DataError, "There is no checkpoint nowhere"),
    ],
)
def test_a_mistake_gets_a_sentence(run: Path, options: tuple[str, ...], error: type, expected: str) -> None:
    raised = call(run, *options).exception
    assert isinstance(raised, error)
    assert expected in str(raised)


def test_a_damaged_checkpoint_is_neither_exported_nor_compared(run: Path) -> None:
    flip(list_checkpoints(run / "checkpoints")[-1] / "torch.pt")
    for options in (("--export", "latest"), ("--compare", "latest", str(steps(run)[0]))):
        raised = call(run, *options).exception
        assert isinstance(raised, RunError)
        assert "SHA-256" in str(raised)


def test_a_run_without_checkpoints_says_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoints" in " ".join(call(run).stdout.split())
    assert "has none" in str(call(run, "--export", "latest").exception)


def test_the_list_says_how_far_each_part_of_a_mixture_is(tmp_path, write_prepared, make_config) -> None:
    prepared = write_prepared(tmp_path / "set", [[user % 50 + 1] * 10 for user in range(400)], num_files=4)
    parts = (Part(name="music", num_files=3), Part(name="talk", num_files=1))
    save_manifest(prepared, load_manifest(prepared).model_copy(update={"parts": parts}))
    config = make_config(
        prepared,
        "engine={name: torch}",
        "batch={tokens_per_step: 200, micro_batches_per_step: 1}",
        "sequence.mix={music: 0.5, talk: 0.5}",
        "train={max_epochs: 1}",
    )
    _train(config)
    run = run_dir_of(config).root
    passes = json.loads(call(run, "--json").stdout)[-1]["passes"]
    assert passes == {"music": pytest.approx(2 / 3, rel=0.1), "talk": pytest.approx(2, rel=0.1)}
    shown = " ".join(call(run).stdout.split())
    assert "Passes through the parts of the mixture at step" in shown
