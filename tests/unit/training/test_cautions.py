"""What a run says of settings that are allowed and seldom meant."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from genrec.config import config_from_dict, load_config
from genrec.training.cautions import cautions
from genrec.training.local import fit
from genrec.training.progress import progress_of
from genrec.training.start import open_run_directory

CONFIGS = Path(__file__).parents[3] / "configs"


def said(values: dict[str, object], num_steps: int = 1_000) -> list[str]:
    least = {
        "name": "x",
        "data": {"prepared": "prepared/x", "source": {"name": "synthetic"}},
        "model": {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_epochs": 1},
    }
    config = config_from_dict(least | values)
    return cautions(config, num_steps)


@pytest.mark.parametrize(("num_steps", "count"), [(5, 1), (64, 1), (65, 0)])
def test_a_warm_up_that_never_ends(num_steps: int, count: int) -> None:
    found = said({"optimizer": {"warmup_steps": 64}}, num_steps)
    assert len(found) == count
    assert all("warmup_steps is 64" in sentence and f"{num_steps} steps" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("loss", "count"),
    [({"temperature": 1.0}, 1), ({"temperature": 0.05}, 0), ({"learn_temperature": True}, 0)],
)
def test_cosines_that_hardly_differ(loss: dict[str, object], count: int) -> None:
    found = said({"model": {"name": "hstu"}, "loss": {"name": "sampled-softmax", **loss}})
    assert len(found) == count
    assert not count or "loss.temperature 1 " in found[0]
    assert said({"model": {"name": "sasrec"}, "loss": {"name": "sampled-softmax", **loss}}) == []


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        ({"negatives": "in-batch"}, 1),
        ({"negatives": "mixed"}, 1),
        ({"negatives": "in-batch", "correction": "none"}, 0),
        ({"negatives": "popularity"}, 0),
    ],
)
def test_shares_of_all_events_for_targets_of_some(loss: dict[str, object], count: int) -> None:
    chosen = {"sequence": {"target_actions": ["listen"]}}
    found = said({"loss": {"name": "sampled-softmax", **loss}, **chosen})
    assert len(found) == count
    assert not count or "(listen)" in found[0]
    assert said({"loss": {"name": "sampled-softmax", **loss}}) == []


def test_collectives_that_end_before_worker_0_is_back() -> None:
    short = {"collective_timeout_s": 60}
    found = said({"cluster": {"workers": 2, **short}})
    assert (
        len(found) == 1 and "collective_timeout_s (60) ends that sooner than the limits of faults (3600 s)" in found[0]
    )
    assert said({"cluster": {"workers": 2, **short}, "faults": {"pause_timeout_s": 60, "step_timeout_s": 50}}) == []
    assert said({"cluster": {"workers": 1, **short}}) == []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_that_come_along_give_no_cause(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_DATA", "/data")
    assert cautions(load_config(path), num_steps=20_000) == []


def test_the_console_of_a_run_shows_them(tmp_path: Path, write_prepared, make_config) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 30, 12).tolist() for _ in range(40)]
    prepared = write_prepared(tmp_path / "set", sequences, num_items=30)
    config = make_config(
        prepared, "engine={name: torch}", f"runs_dir={tmp_path}", "train.max_steps=2", "optimizer.warmup_steps=64"
    )
    run = open_run_directory(config, fresh=False, say=lambda _: None)
    console = Console(file=io.StringIO(), width=200)
    with progress_of(run.metrics_path, console):
        fit(config, run, time.time())
    shown = console.file.getvalue()
    assert "\nCaution: The learning rate still rises when the run ends, because optimizer.warmup_steps is 64" in shown
