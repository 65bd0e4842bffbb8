"""`genrec tokenize` as a user types it: from a log to a map, and codes for what the log got later."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from semantic_sets import nested_vectors
from typer.testing import CliRunner

from genrec.cli import app
from genrec.errors import ConfigError, DataError
from genrec.semantic.ids import load_semantic_ids

CONFIG = """\
name: c
data: {source: {name: csv, path: log}, prepared: prepared/c}
semantic_ids:
  path: maps/c
  vectors: {name: file, path: v.npy}
  tokenizer: {name: rkmeans, sizes: [4, 4], iterations: 5}
  health: {max_collision_rate: 1}
model: {name: code-decoder, dim: 8, num_layers: 1, num_heads: 1}
loss: {name: full-softmax}
train: {max_steps: 1}
"""


def write_log(path: Path, first_user: int, first_item: int, num_items: int) -> None:
    """Ten users, each with all items from `first_item` on."""
    users = range(first_user, first_user + 10)
    rows = [f"{user},{first_item + item},{item}" for user in users for item in range(num_items)]
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")


def genrec(*words: str) -> Result:
    """What the command did; its mistake is raised."""
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_from_a_log_to_a_map_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "log").mkdir()
    write_log(tmp_path / "log" / "a.csv", 0, 0, 40)
    vectors = nested_vectors(50)
    np.save("v.npy", vectors)
    shown = genrec("tokenize", "c.yaml").output
    for words in ("Collision rate", "Neighbours kept", "Map: maps/c, 40 items, levels [4, 4, ", "maps/c/health.html"):
        assert words in shown
    made = load_semantic_ids("maps/c")
    with pytest.raises(DataError, match="holds a map already"):
        genrec("tokenize", "c.yaml")
    with pytest.raises(ConfigError, match="--extend keeps the map"):
        genrec("tokenize", "c.yaml", "--extend", "--overwrite")
    assert "has codes for every item already" in genrec("tokenize", "c.yaml", "--extend").output
    told = json.loads(genrec("tokenize", "c.yaml", "--overwrite", "--json").stdout)
    assert told["digest"] == made.digest and told["health"]["num_items"] == 40

    write_log(tmp_path / "log" / "b.csv", 10, 40, 10)
    genrec("prepare", "c.yaml", "--append")
    vectors[43, 2] = np.nan
    np.save("v.npy", vectors)
    with pytest.raises(
        DataError, match=r"vector of item '43' \(index \d+\), row 43 of .*v\.npy, holds a value that is no"
    ):
        genrec("tokenize", "c.yaml", "--extend")
    assert load_semantic_ids("maps/c").digest == made.digest
    vectors[43, 2] = 0
    np.save("v.npy", vectors)
    told = json.loads(genrec("tokenize", "c.yaml", "--extend", "--json").stdout)
    grown = load_semantic_ids("maps/c")
    assert told == {
        "path": "maps/c",
        "digest": grown.digest,
        "num_new": 10,
        "num_moved": told["num_moved"],
        "grown": None,
    }
    assert np.array_equal(grown.codes[:41], made.codes) and grown.sizes == made.sizes


def test_a_place_that_cannot_hold_a_map_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "log").mkdir()
    write_log(tmp_path / "log" / "a.csv", 0, 0, 40)
    np.save("v.npy", nested_vectors(40))
    with pytest.raises(DataError, match=r"c\.yaml/map cannot be written .*set semantic_ids.path to another folder"):
        genrec("tokenize", "c.yaml", "semantic_ids.path=c.yaml/map")
    with pytest.raises(ConfigError, match=r"path s3://b/map is a URI, and a map of codes is a folder"):
        genrec("tokenize", "c.yaml", "semantic_ids.path=s3://b/map")
