"""A run that goes on with other codes is refused, by the command and by the workers, and nothing is changed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.manifest import load_manifest
from genrec.errors import RunError
from genrec.run_dir import run_dir_of
from genrec.semantic.ids import SemanticIds, load_semantic_ids
from genrec.semantic.run_map import made_up_ids
from genrec.training.local import fit
from genrec.training.start import open_run_directory
from genrec.training.warm_start import warm_start
from genrec.training.worker import new_model

SIZES = (3, 4, 5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_prepared: Callable[..., Path]) -> ExperimentConfig:
    """The config of a run of a few steps, trained in this process."""
    folder = tmp_path_factory.mktemp("codes")
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(1, 41, (8,), generator=generator).tolist() for _ in range(20)]
    prepared = write_prepared(folder / "set", sequences, num_items=40)
    made_up_ids(40, SIZES).save(folder / "map")
    config = config_from_dict(
        {
            "name": "codes",
            "runs_dir": str(folder / "runs"),
            "data": {"source": {"name": "synthetic"}, "prepared": str(prepared)},
            "sequence": {"max_length": 8},
            "batch": {"tokens_per_step": 64, "micro_batches_per_step": 2},
            "semantic_ids": {"path": str(folder / "map")},
            "model": {"name": "code-decoder", "history": "items", "dim": 8, "num_layers": 1, "num_heads": 2},
            "loss": {"name": "full-softmax"},
            "engine": {"name": "torch"},
            "train": {"max_steps": 3},
            "evaluation": {"ks": [1, 10]},
            "cluster": {"threads_per_worker": 1},
        }
    )
    fit(config, open_run_directory(config, fresh=False, say=lambda _: None), time.time())
    return config


def other_codes(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    ids = made_up_ids(40, SIZES)
    codes = ids.codes.copy()
    codes[[1, 2]] = codes[[2, 1]]
    SemanticIds(codes, ids.sizes, "").save(folder / "other")
    assert config.semantic_ids is not None
    path = config.semantic_ids.model_copy(update={"path": str(folder / "other")})
    return config.model_copy(update={"semantic_ids": path})


def test_the_export_holds_the_map(trained: ExperimentConfig) -> None:
    found = load_semantic_ids(run_dir_of(trained).export_path)
    assert found.digest == made_up_ids(40, SIZES).digest


def test_a_command_with_other_codes_is_refused_and_changes_nothing(trained: ExperimentConfig, tmp_path: Path) -> None:
    run = run_dir_of(trained)
    before = run.config_path.read_text()
    with pytest.raises(RunError, match="was trained with the map"):
        open_run_directory(other_codes(trained, tmp_path), fresh=False, say=lambda _: None)
    assert run.config_path.read_text() == before
    assert open_run_directory(trained, fresh=False, say=lambda _: None) == run


def test_workers_refuse_other_codes(trained: ExperimentConfig, tmp_path: Path) -> None:
    run, other = run_dir_of(trained), other_codes(trained, tmp_path)
    run.create(other)  # as if the map had been exchanged after the command had looked
    with pytest.raises(RunError, match="was trained with the map"):
        fit(other, run, time.time())
    run.create(trained)


def test_a_start_from_an_export_needs_codes_that_agree(trained: ExperimentConfig, tmp_path: Path) -> None:
    manifest = load_manifest(trained.data.prepared)
    export = str(run_dir_of(trained).export_path)
    starting = trained.model_copy(update={"train": trained.train.model_copy(update={"start_from": export})})
    model = new_model(starting, manifest)
    assert warm_start(model, starting, manifest) is not None
    refused = other_codes(starting, tmp_path)
    with pytest.raises(RunError, match="writes other codes for the same items"):
        warm_start(new_model(refused, manifest), refused, manifest)
