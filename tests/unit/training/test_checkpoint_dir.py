"""`train.checkpoint_dir`: each run has its own folder there, resumes from it, and never begins again by mistake."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from storage_that_fails import FailingFiles
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, RunError, StorageError
from genrec.inference.export import read_export
from genrec.run_dir import run_dir_of
from genrec.training import start
from genrec.training.checkpoint import latest_checkpoint, read_info
from genrec.training.checkpoint_store import CheckpointStore, store_of
from genrec.training.local import fit
from genrec.training.start import open_run_directory


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_prepared) -> Path:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, 12).tolist() for _ in range(40)]
    return write_prepared(tmp_path_factory.mktemp("store") / "set", sequences, num_items=30)


@pytest.fixture
def config(prepared: Path, tmp_path: Path, make_config):
    def make(*overrides: str) -> ExperimentConfig:
        return make_config(
            prepared,
            "engine={name: torch}",
            f"runs_dir={tmp_path / 'runs'}",
            "batch={tokens_per_step: 160, micro_batches_per_step: 1, chunk_tokens: 160}",
            "train={max_steps: 6, checkpoint_every_steps: 2, log_every_steps: 1}",
            f"train.checkpoint_dir={(tmp_path / 'bucket').as_uri()}",
            "cluster.threads_per_worker=1",
            *overrides,
        )

    return make


def train(config: ExperimentConfig, **options) -> list[str]:
    said: list[str] = []
    fit(config, open_run_directory(config, **{"fresh": False, "say": said.append} | options), time.time())
    return said


def lines(config: ExperimentConfig, kind: str) -> list[dict]:
    text = run_dir_of(config).metrics_path.read_text()
    return [record for record in map(json.loads, text.splitlines()) if record["kind"] == kind]


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(folder.glob("step_*"))]


@pytest.mark.parametrize("where", ["uri", "folder"])
def test_a_run_trains_and_resumes_with_its_own_folder_in_the_storage(config, tmp_path: Path, where: str) -> None:
    place = f"train.checkpoint_dir={tmp_path / 'bucket' if where == 'folder' else (tmp_path / 'bucket').as_uri()}"
    first = config(place)
    train(first)
    assert steps_in(tmp_path / "bucket" / "unit") == [4, 6]
    assert not run_dir_of(first).checkpoints_path.exists()
    other = config(place, "name=other", "train.max_steps=2")
    train(other)
    assert steps_in(tmp_path / "bucket" / "other") == [2]
    longer = config(place, "train.max_steps=9")
    said = train(longer, allow_change=["train.max_steps"])
    assert any("from step_00000006" in text for text in said)
    assert lines(longer, "start")[-1]["step"] == 6
    assert [line["step"] for line in lines(longer, "train")] == list(range(1, 10))
    straight = config("name=straight", "train.max_steps=9", "train.checkpoint_dir=null")
    train(straight)
    assert [x["loss"] for x in lines(longer, "train")] == [x["loss"] for x in lines(straight, "train")]


def test_a_checkpoint_holds_everything_that_contract_6_asks_for(config, monkeypatch) -> None:
    monkeypatch.setattr("genrec.training.tracking.Tracker.id", "wandb-1")
    saved = config()
    train(saved)
    store = store_of(saved, run_dir_of(saved))
    state = json.loads(store.read("step_00000006", "state.json"))
    assert state["step"] == state["state"]["step"] == 6  # the cursor; randomness is a function of it
    assert state["config"] == saved.model_dump(mode="json")
    assert len(state["config_hash"]) == len(state["content_hash"]) == 64
    assert state["workers"] == 1
    assert state["engine"] == {"name": "torch", "precision": "fp32", "matmul_precision": "highest"}
    assert {"torch", "genrec"} <= state["versions"].keys()
    assert state["state"]["tracker_id"] == "wandb-1"
    assert read_info(store, "step_00000006").state.tracker_id == "wandb-1"


def test_a_run_whose_directory_is_gone_goes_on_from_the_storage(config, tmp_path: Path) -> None:
    train(config())
    moved = config(f"runs_dir={tmp_path / 'elsewhere'}")
    with pytest.raises(RunError, match=r"optimizer.lr: 0.001 -> 0.5"):
        train(config(f"runs_dir={tmp_path / 'elsewhere'}", "optimizer.lr=0.5"))
    assert not run_dir_of(moved).root.exists()
    longer = config(f"runs_dir={tmp_path / 'elsewhere'}", "train.max_steps=7")
    train(longer, allow_change=["train.max_steps"])
    assert lines(longer, "start")[-1]["step"] == 6


def test_fresh_deletes_the_checkpoints_of_the_run_wherever_they_are(config, tmp_path: Path) -> None:
    train(config())
    train(config("name=other"))
    inside = config("train.checkpoint_dir=null", "train.max_steps=2")
    train(inside, fresh=True)
    assert steps_in(tmp_path / "bucket" / "unit") == []
    assert steps_in(tmp_path / "bucket" / "other") == [4, 6]
    assert [line["step"] for line in lines(inside, "start")] == [0]
    train(config("name=other"), fresh=True)
    assert [line["step"] for line in lines(config("name=other"), "start")] == [0]


def test_another_checkpoint_dir_never_makes_a_run_begin_again(config, tmp_path: Path) -> None:
    train(config())
    there = config(f"train.checkpoint_dir={(tmp_path / 'there').as_uri()}", "train.max_steps=8")
    with pytest.raises(RunError, match=r"checkpoints of this run are in file:.*bucket/unit, and .*there/unit has none"):
        train(there, allow_change=["train.max_steps"])
    shutil.copytree(tmp_path / "bucket", tmp_path / "there")
    train(there, allow_change=["train.max_steps"])
    assert lines(there, "start")[-1]["step"] == 6


def test_a_storage_that_cannot_be_written_is_found_before_training(config, monkeypatch) -> None:
    failing = FailingFiles("open_output_stream", error=PermissionError("access denied"))
    monkeypatch.setattr(start, "store_of", lambda config, run: failing.store(config.train.checkpoint_dir[7:]))
    with pytest.raises(StorageError, match=r"could not be written \(access denied\).*credentials"):
        open_run_directory(config(), fresh=False, say=lambda _: None)


def test_a_failing_upload_ends_a_local_run_and_the_same_command_goes_on(config, monkeypatch) -> None:
    broken = config("train.checkpoint_dir=null")
    run = open_run_directory(broken, fresh=False, say=lambda _: None)
    failing = FailingFiles("open_output_stream", path="step_00000004")
    store = failing.store(str(run.checkpoints_path))
    with monkeypatch.context() as patch:
        patch.setattr("genrec.training.local.store_of", lambda *_: store)
        with pytest.raises(StorageError, match="run the same command to go on from the last checkpoint"):
            fit(broken, run, time.time())
    assert latest_checkpoint(CheckpointStore(run.checkpoints_path)) == "step_00000002"
    train(broken)
    assert [line["step"] for line in lines(broken, "start")] == [0, 2]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:hush@bucket/prefix",
        "s3://bucket/prefix?access_key=AKIA123&secret_key=hush",
        "s3://bucket?session_token=hush",
        "gs://bucket/x?access_token=hush",
    ],
)
def test_credentials_in_the_uri_are_refused_and_not_repeated(config, uri: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint_dir must not hold credentials") as told:
        config(f"train.checkpoint_dir='{uri}'")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/p?region=eu-north-1&scheme=http", "abfs://box@name.dfs.core.windows.net/p"]
)
def test_a_uri_without_credentials_is_taken(config, uri: str) -> None:
    assert config(f"train.checkpoint_dir='{uri}'").train.checkpoint_dir == uri
    assert str(CheckpointStore(uri, "run")) == uri.partition("?")[0] + "/run"


def test_a_uri_that_pyarrow_does_not_know_gets_a_sentence() -> None:
    with pytest.raises(StorageError, match=r"storage nope://x/run could not be opened \(Unrecognized filesystem"):
        CheckpointStore("nope://x", "run").names()


def test_checkpoints_in_a_storage_are_listed_verified_compared_and_exported(config, tmp_path: Path) -> None:
    trained = config()
    train(trained)
    run, stored = run_dir_of(trained).root, tmp_path / "bucket" / "unit"

    def call(*options: str):
        return CliRunner().invoke(app, ["checkpoints", str(run), *options])

    rows = json.loads(call("--json").stdout)
    assert [(row["step"], row["status"]) for row in rows] == [(4, "counts"), (6, "counts")]
    assert call("--verify").exit_code == 0
    found = json.loads(call("--compare", (stored / "step_00000004").as_uri(), "latest", "--json").stdout)
    assert "step: 4 -> 6" in found["progress"]
    assert call("--export", "6", "--output", str(tmp_path / "out")).exit_code == 0
    weights = torch.load(stored / "step_00000006" / "torch.pt", weights_only=True)["model"]
    exported = read_export(tmp_path / "out").state_dict
    assert all(torch.equal(exported[name], weight) for name, weight in weights.items())
    content = bytearray((stored / "step_00000006" / "torch.pt").read_bytes())
    content[100] ^= 1
    (stored / "step_00000006" / "torch.pt").write_bytes(bytes(content))
    assert call("--verify").exit_code == 1
    assert "SHA-256" in str(call("--export", "latest", "--output", str(tmp_path / "never")).exception)
