"""The run directory: its paths, its config, its metrics, and writes that are never seen by half."""

from pathlib import Path
from typing import Any

import pytest

from genrec.config import ExperimentConfig, config_from_dict
from genrec.errors import ConfigError, DataError, RunError
from genrec.overrides import apply_overrides
from genrec.run_dir import RunDir, config_differences, open_run, read_metrics, run_dir_of, write_atomically


def make_config(*overrides: str) -> ExperimentConfig:
    """A small config."""
    values: dict[str, Any] = {
        "name": "small",
        "data": {"source": {"name": "synthetic"}, "prepared": "prepared/small"},
        "model": {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_epochs": 1},
    }
    return config_from_dict(apply_overrides(values, overrides))


def test_run_directory_is_named_by_the_config(tmp_path: Path) -> None:
    run = run_dir_of(make_config(f"runs_dir={tmp_path}"))
    assert run.root == tmp_path / "small"
    assert not run.root.exists()


def test_paths_are_those_of_the_contract(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [
        run.config_path,
        run.environment_path,
        run.metrics_path,
        run.log_path,
        run.evaluation_path,
        run.report_path,
        run.checkpoints_path,
        run.export_path,
    ]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "evaluation.json",
        "report.html",
        "checkpoints",
        "export",
    ]


def test_create_saves_a_config_that_opens_again(tmp_path: Path) -> None:
    config = make_config(f"runs_dir={tmp_path}", "optimizer.lr=0.125", "evaluation.ks=[3,10]")
    run_dir_of(config).create(config)
    run, opened = open_run(tmp_path / "small")
    assert opened == config
    assert [path.name for path in run.root.iterdir()] == ["config.yaml"]


def test_create_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = make_config(f"runs_dir={tmp_path / 'file'}")
    with pytest.raises(
        RunError, match=r"file/small cannot be written \(Not a directory\); choose another with runs_dir="
    ):
        run_dir_of(config).create(config)


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run directory \(no config\.yaml\)"):
        open_run(tmp_path)


def test_open_refuses_a_damaged_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: small\n")
    with pytest.raises(ConfigError, match="data is required and missing"):
        open_run(tmp_path)


def test_metrics_of_a_run_that_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_last_line_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2 is not JSON; restore the file or remove the line"):
        read_metrics(path)


def test_an_atomic_write_replaces_the_text_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_differences_name_every_setting_that_changed() -> None:
    old, new = make_config(), make_config("optimizer.lr=0.5", "model={name: hstu, dim: 32}", "evaluation.ks=[10]")
    differences = config_differences(old, new)
    assert "optimizer.lr: 0.001 -> 0.5" in differences
    assert "model.name: 'sasrec' -> 'hstu'" in differences
    assert "evaluation.ks: [1, 5, 10, 50] -> [10]" in differences
    assert "model.feed_forward_dim: None -> None" not in differences
    assert config_differences(old, old) == []
