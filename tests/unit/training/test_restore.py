"""What a run begins with: its newest checkpoint that counts, an export, or nothing; and which checkpoints it keeps."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.errors import RunError
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint import (
    CheckpointInfo,
    info_in,
    prune_checkpoints,
    upload_checkpoint,
    write_checkpoint,
)
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name, store_of
from genrec.training.local import fit
from genrec.training.restore import agreed_checkpoint
from genrec.training.start import open_run_directory
from genrec.training.state import TrainState


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_prepared) -> Path:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, 12).tolist() for _ in range(40)]
    return write_prepared(tmp_path_factory.mktemp("restore") / "set", sequences, num_items=30)


def train(config: ExperimentConfig) -> list[str]:
    said: list[str] = []
    fit(config, open_run_directory(config, fresh=False, say=said.append), time.time())
    return said


def steps_of(config: ExperimentConfig) -> list[int]:
    return [info_in(path).step for path in list_checkpoints(run_dir_of(config).checkpoints_path)]


def list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def lines(config: ExperimentConfig, kind: str) -> list[dict]:
    text = run_dir_of(config).metrics_path.read_text()
    return [record for record in map(json.loads, text.splitlines()) if record["kind"] == kind]


@pytest.fixture
def config(prepared: Path, tmp_path: Path, make_config):
    def make(*overrides: str) -> ExperimentConfig:
        return make_config(
            prepared,
            "engine={name: torch}",
            f"runs_dir={tmp_path / 'runs'}",
            "batch={tokens_per_step: 160, micro_batches_per_step: 1, chunk_tokens: 160}",
            "train.max_steps=null",
            "train.max_epochs=4",
            "optimizer.lr=0.02",
            *overrides,
        )

    return make


def test_the_best_checkpoint_is_kept_besides_the_newest(config) -> None:
    kept = config("train.keep_checkpoints=1", "train.keep_best=1", "train.checkpoint_every_steps=1")
    train(kept)
    validations = {line["step"]: line["metrics"]["ndcg@10"] for line in lines(kept, "validation")}
    best = max(validations, key=lambda step: validations[step])
    last = max(validations)
    assert steps_of(kept) == sorted({best, last})
    info = info_in(list_checkpoints(run_dir_of(kept).checkpoints_path)[0])
    assert info.state.metric == validations[best]
    assert info.config == kept.model_dump(mode="json")
    assert len(info.config_hash or "") == 64
    assert abs((info.time_s or 0) - time.time()) < 600


def test_a_step_without_a_validation_has_no_metric(config) -> None:
    every = config("train.keep_checkpoints=100", "train.checkpoint_every_steps=1")
    train(every)
    validated = {line["step"] for line in lines(every, "validation")}
    infos = [info_in(path) for path in list_checkpoints(run_dir_of(every).checkpoints_path)]
    assert {info.step for info in infos if info.state.metric is not None} == validated
    assert validated < {info.step for info in infos}


def test_a_run_whose_checkpoints_are_damaged_refuses_until_fresh(config) -> None:
    damaged = config("train.keep_checkpoints=2")
    train(damaged)
    longer = config("train.keep_checkpoints=2", "train.max_epochs=5")
    folders = list_checkpoints(run_dir_of(damaged).checkpoints_path)
    before, newest = info_in(folders[-2]).step, folders[-1] / "torch.pt"
    content = bytearray(newest.read_bytes())
    content[100] ^= 1
    newest.write_bytes(bytes(content))
    open_run_directory(longer, fresh=False, say=lambda _: None, allow_change=["train.max_epochs"])
    fit(longer, run_dir_of(longer), time.time())  # sizes are right, so only the digest tells
    assert lines(longer, "start")[-1]["step"] == before
    for path in list_checkpoints(run_dir_of(damaged).checkpoints_path):
        (path / "torch.pt").write_bytes(b"cut")
    with pytest.raises(RunError, match=r"(?s)No checkpoint in .* can be used.*torch.pt has 3 bytes.*--fresh"):
        open_run_directory(longer, fresh=False, say=lambda _: None)
    assert len(list_checkpoints(run_dir_of(damaged).checkpoints_path)) == 2  # a refusal deletes nothing


def test_a_new_run_begins_with_the_weights_of_another(config) -> None:
    first = config("name=first")
    train(first)
    warm = config("name=warm", f"train.start_from={run_dir_of(first).root}", "train.max_epochs=1")
    assert "30 of 30 items matched" in train(warm)[-1]
    (start,) = lines(warm, "start")
    assert start["warm_start"]["matched_items"] == start["warm_start"]["num_items"] == 30
    cold = config("name=cold", "train.max_epochs=1")
    train(cold)
    loss = {c.name: lines(c, "train")[-1]["loss"] for c in (warm, cold)}
    assert loss["warm"] < loss["cold"]
    # a resumed run goes on from its own checkpoint, not from the export
    longer = warm.model_copy(update={"train": warm.train.model_copy(update={"max_epochs": 2})})
    open_run_directory(longer, fresh=False, say=lambda _: None, allow_change=["train.max_epochs"])
    fit(longer, run_dir_of(longer), time.time())
    assert lines(longer, "start")[-1]["warm_start"] is None
    assert lines(longer, "start")[-1]["step"] > 0


def test_the_best_under_another_protocol_is_no_bar(config) -> None:
    """HR@10 is larger than NDCG@10, so without starting anew no validation could ever be the best again."""
    first = config("evaluation.metric=hr@10")
    train(first)
    longer = config("evaluation.metric=ndcg@10", "train.max_epochs=5")
    allow = ["evaluation.metric", "train.max_epochs"]
    fit(longer, open_run_directory(longer, fresh=False, say=lambda _: None, allow_change=allow), time.time())
    last = lines(longer, "validation")[-1]
    assert last["best"]
    assert last["metrics"]["ndcg@10"] < max(line["metrics"]["hr@10"] for line in lines(longer, "validation")[:-1])


class FileEngine:
    """Writes one small file."""

    def save(self, folder: Path) -> None:
        (folder / "torch.pt").write_bytes(b"weights")


def save(config: ExperimentConfig, step: int) -> Path:
    """A checkpoint of one worker, without a training."""
    draft = run_dir_of(config).root / f"draft-{step}"
    draft.mkdir(parents=True)
    write_checkpoint(draft, FileEngine(), CheckpointInfo(step, TrainState(step), "hash", 1, {}, {}), 0)
    store = store_of(config, run_dir_of(config))
    upload_checkpoint(store, draft, checkpoint_name(step), 0)
    return Path(store.path(checkpoint_name(step)))


class Worker:
    """One of two workers: what worker 0 says arrives as `told`, and what this one says is kept."""

    def __init__(self, config: ExperimentConfig, rank: int, told: int = 0) -> None:
        self.run = run_dir_of(config)
        self.store = store_of(config, self.run)
        self.rank = rank
        self.told = told
        self.said: list[int] = []

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        self.said.append(int(values[0]))
        return values + self.told


def test_all_workers_begin_where_worker_0_does(config) -> None:
    trained = config()
    before, newest = save(trained, 10), save(trained, 20)
    first = Worker(trained, rank=0)
    assert agreed_checkpoint(trained, first) == newest
    assert first.said == [info_in(newest).step]
    other = Worker(trained, rank=1, told=info_in(before).step)
    assert agreed_checkpoint(trained, other) == before
    assert other.said == [0]
    assert agreed_checkpoint(trained, Worker(trained, rank=1, told=-1)) is None
    with pytest.raises(RunError, match=r"Worker 1 does not see the checkpoint .*step_00000999.*all workers share"):
        agreed_checkpoint(trained, Worker(trained, rank=1, told=999))


def test_a_refusal_of_worker_0_ends_the_others_with_its_sentence(config) -> None:
    trained = config()
    save(trained, 10)
    save(trained, 20)
    prune_checkpoints(CheckpointStore(run_dir_of(trained).checkpoints_path), keep=2)
    with pytest.raises(RunError, match="its own message says why"):
        agreed_checkpoint(trained, Worker(trained, rank=1, told=-2))
    for path in list_checkpoints(run_dir_of(trained).checkpoints_path):
        (path / "torch.pt").write_bytes(b"cut")
    first = Worker(trained, rank=0)
    for worker in (first, Worker(trained, rank=1, told=-2)):
        with pytest.raises(RunError, match=r"torch.pt has 3 bytes.*--fresh"):
            agreed_checkpoint(trained, worker)
    assert first.said == [-2]  # told before it raised, so nobody waits
