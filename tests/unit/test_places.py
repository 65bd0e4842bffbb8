"""Places on storage in a config: no credentials, and nothing that a URI cannot do."""

from pathlib import Path

import pytest

from genrec.config import config_from_dict
from genrec.errors import ConfigError
from genrec.launch.job_command import read_command

SECRETS = ["s3://AKIA123:hush@bucket/x", "s3://bucket/x?secret_key=hush", "https://host/x?token=hush"]
SECRETS += ["https://host/x?passwd=hush", "https://host/x?X-Amz-Credential=hush"]


@pytest.mark.parametrize("place", SECRETS)
@pytest.mark.parametrize("setting", ["runs_dir", "data.prepared", "data.source.path", "data.item_vectors.path"])
def test_credentials_are_refused_and_not_shown(setting: str, place: str, tmp_path: Path, make_config) -> None:
    values = make_config(tmp_path).model_dump(mode="json")
    values["data"]["source"] = {"name": "parquet", "path": "log"}
    values["data"]["item_vectors"] = {"path": "vectors"}
    *sections, key = setting.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[key] = place
    with pytest.raises(ConfigError, match="must not hold credentials") as refused:
        config_from_dict(values)
    assert "hush" not in str(refused.value)


def test_background_validation_needs_a_shared_folder(tmp_path: Path, make_config) -> None:
    with pytest.raises(ConfigError, match=r"runs_dir is s3://bucket/runs; use evaluation\.validation: inline"):
        make_config(tmp_path, "runs_dir=s3://bucket/runs", "evaluation.validation=background")
    assert make_config(tmp_path, "runs_dir=s3://bucket/runs").runs_dir == "s3://bucket/runs"


def test_a_job_leaves_places_on_storage_where_they_are(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    (tmp_path / "a.yaml").write_bytes(config.read_bytes())
    places = ["runs_dir=s3://bucket/runs", "data.prepared=s3://bucket/prepared"]
    words = ["train", "a.yaml", *places]
    command = read_command(words, {"file": Path("a.yaml"), "overrides": places}, tmp_path, None)
    assert command.words == tuple(words)
    evaluated = ["evaluate", "s3://bucket/runs/walk"]
    assert read_command(evaluated, {"run": Path(evaluated[1])}, tmp_path, None).words == tuple(evaluated)


def test_a_job_finds_the_runs_of_options_on_its_storage(tmp_path: Path) -> None:
    words = ["evaluate", "runs/codes", "--rerank", "runs/dense"]
    given = {"run": Path(words[1]), "rerank": Path(words[3]), "map": None}
    moved = read_command(words, given, tmp_path, "/s").words
    assert moved == ("evaluate", "/s/runs/codes", "--rerank", "/s/runs/dense")
    with pytest.raises(ConfigError, match=r"rerank \(runs/dense\) is relative"):
        read_command(words, given | {"run": None}, tmp_path, None)
