"""Names and lists from elsewhere cannot lead out of the folder that they belong to."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from genrec.config import ExperimentConfig
from genrec.data.manifest import SequenceFile
from genrec.errors import ConfigError
from genrec.run_dir import run_dir_of
from genrec.storage import stays_inside
from genrec.training.checkpoint import find_problem
from genrec.training.checkpoint_fetch import UnusableCheckpointError, fetched
from genrec.training.checkpoint_store import CheckpointStore

LEADS_OUT = ["..", "../up", "/etc/passwd", "a/../../b", "a/./b", "a//b", "", "a\0b"]


@pytest.mark.parametrize("name", [*LEADS_OUT, ".hidden", "-flag", "a/b", "a b", "a\n", "a" * 101, "$(reboot)", "a;b"])
def test_a_run_name_cannot_leave_its_folder(name: str, tmp_path: Path, make_config) -> None:
    with pytest.raises(ConfigError, match="name"):
        make_config(tmp_path, f"name={json.dumps(name)}")


@pytest.mark.parametrize("name", ["walk", "walk-2.b_3", "a..b", "0"])
def test_a_run_is_a_folder_right_below_runs_dir(name: str, tmp_path: Path, make_config) -> None:
    config: ExperimentConfig = make_config(tmp_path, f"name={json.dumps(name)}", f"runs_dir={tmp_path}/runs")
    assert run_dir_of(config).root.resolve().parent == (tmp_path / "runs").resolve()


@pytest.mark.parametrize("name", LEADS_OUT)
def test_what_leads_out_is_seen(name: str) -> None:
    assert not stays_inside(name)
    with pytest.raises(ValidationError):
        SequenceFile(path=f"sequences/{name}", num_bytes=1, row_groups=())


@pytest.mark.parametrize("name", ["metrics.jsonl", "export/model.safetensors", "a..b", ".hidden"])
def test_what_stays_inside_passes(name: str) -> None:
    assert stays_inside(name)


def test_a_checkpoint_cannot_write_where_it_likes(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "step_00000010"
    folder.mkdir(parents=True)
    (tmp_path / "outside").write_text("mine")
    told = {"../../outside": {"num_bytes": 4, "sha256": "0" * 64}}
    (folder / "rank_00000.json").write_text(json.dumps(told))
    info = {"step": 10, "workers": 1, "content_hash": "x", "state": {}, "engine": {}, "versions": {}}
    (folder / "state.json").write_text(json.dumps(info))
    store = CheckpointStore((tmp_path / "store").as_uri())
    problem = find_problem(store, folder.name, digests=False)
    assert problem is not None and "outside of the checkpoint" in problem
    with pytest.raises(UnusableCheckpointError), fetched(store, folder.name):
        pytest.fail("it was read")
    assert (tmp_path / "outside").read_text() == "mine"
