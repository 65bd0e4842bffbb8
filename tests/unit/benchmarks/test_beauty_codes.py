"""Rows of semantic ids side by side: what they train, and what they read of a finished run."""

import json
from pathlib import Path

import pytest
import yaml

import beauty_codes
from beauty_codes import collision_rate, published, row_of, sources
from genrec.config import load_config
from genrec.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[3]


def test_rows_differ_in_their_map_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_DATA", "/data")
    base = load_config(ROOT / beauty_codes.CODES).model_dump(exclude={"semantic_ids"})
    paths = []
    for name, source in sources("some-encoder").items():
        settings = [f"semantic_ids.{setting}" for setting in source.semantic_ids]
        config = load_config(ROOT / source.config, settings)
        if name != "sasrec":
            assert config.model_dump(exclude={"semantic_ids"}) == base
            paths.append(config.semantic_ids.path)
    assert len(set(paths)) == len(paths) == len(sources("")) - 1


def finished_run(folder: Path, codes: bool) -> None:
    """A run that has been tested, as far as the script reads it."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "data": {"source": {"name": "synthetic"}, "prepared": "prepared/none"},
        "model": {"name": "code-decoder"} if codes else {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_steps": 1},
        **({"semantic_ids": {"path": str(folder.parent / "map")}} if codes else {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    test = {"metrics": {"hr@10": 0.2, "ndcg@10": 0.1}, "intervals": {"hr@10": [0.1, 0.3], "ndcg@10": [0.05, 0.15]}}
    (folder / "evaluation.json").write_text(json.dumps({"test": test}))
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 9, "elapsed_s": 70.0}) + "\n")
    (folder.parent / "map").mkdir(exist_ok=True)
    (folder.parent / "map" / "health.json").write_text(json.dumps({"health": {"collision_rate": 0.4}}))


def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beauty_codes, "run_command", None)
    finished_run(tmp_path / "runs" / "sid_beauty_letter", codes=True)
    row = row_of("letter", sources("")["letter"], 1)
    assert (row["hr@10"], row["ndcg@10_low"], row["training_s"]) == (0.2, 0.05, 70.0)
    assert row["collision_rate"] == 0.4
    finished_run(tmp_path / "runs" / "sasrec_beauty", codes=False)
    assert collision_rate(RunDir(tmp_path / "runs" / "sasrec_beauty")) is None


def test_a_missing_run_is_trained_with_its_seed_and_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def train(command: list[str], timeout_s: float) -> None:
        commands.append(command[3:])
        name = next(word for word in command if word.startswith("name=")).removeprefix("name=")
        finished_run(tmp_path / "runs" / name, codes=True)

    monkeypatch.setattr(beauty_codes, "run_command", train)
    row_of("played", sources("")["played"], 2)
    assert [command[:3] for command in commands] == [
        ["train", "configs/esasrec_beauty.yaml", "name=esasrec_beauty"],
        ["train", beauty_codes.CODES, "name=sid_beauty_played_seed2"],
    ]
    assert "seed=2" in commands[1] and "runs_dir=runs" in commands[1]
    assert published("letter")[0] == "path=maps/letter"
