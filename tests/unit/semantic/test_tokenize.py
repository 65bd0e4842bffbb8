"""`genrec tokenize` from end to end: what is written, what is refused, and that old codes never change."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from semantic_sets import map_config, nested_vectors, write_set

from genrec.errors import ConfigError, DataError
from genrec.semantic.extend import extend
from genrec.semantic.ids import load_semantic_ids
from genrec.semantic.tokenize import tokenize
from genrec.semantic.vocabulary import map_for

PUBLISHED = {"name": "published"}


def test_a_map_is_made_of_the_sets_vectors(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 60, nested_vectors(60))
    config = map_config(prepared)
    made = tokenize(config)
    assert made is not None
    ids = map_for(config, prepared)
    assert np.array_equal(ids.codes, made.ids.codes)
    assert ids.sizes[:2] == (4, 4) and ids.sizes[2] == made.health.max_bucket
    files = {path.name for path in (tmp_path / "map").iterdir()}
    assert files == {
        "codes.npy", "map.json", "tokenizer.safetensors", "tokenizer.json", "vectors.json", "vectors.safetensors",
        "health.json", "health.html",
    }  # fmt: skip
    told = json.loads((tmp_path / "map" / "health.json").read_text())
    assert told["health"]["num_items"] == 60
    # Nothing is left beside the map.
    assert {path.name for path in tmp_path.iterdir()} == {"set", "map"}


def test_a_map_that_is_there_is_kept(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 60, nested_vectors(60))
    config = map_config(prepared)
    first = tokenize(config)
    with pytest.raises(DataError, match=r"holds a map already; run `genrec tokenize CONFIG --extend`"):
        tokenize(config)
    again = tokenize(config, overwrite=True)
    assert first is not None and again is not None and first.ids.digest == again.ids.digest
    (tmp_path / "map" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"is no folder of a map \(thesis.tex\)"):
        tokenize(config, overwrite=True)


def test_unhealthy_codes_are_not_written_unless_accepted(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 60, nested_vectors(60))
    config = map_config(prepared, "semantic_ids.health.max_bucket=1")
    with pytest.raises(DataError, match=r"items with the same codes \d+, at most 1 by max_bucket.* no map was written"):
        tokenize(config)
    assert not (tmp_path / "map").exists()
    made = tokenize(config, accept_unhealthy=True)
    assert made is not None and len(made.accepted) == 1
    assert "Accepted although" in (tmp_path / "map" / "health.html").read_text()
    assert load_semantic_ids(tmp_path / "map").origin["accepted"] == list(made.accepted)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["dedup", "nearest"]), st.integers(20, 40), st.integers(1, 40), st.integers(0, 99))
def test_extending_never_changes_codes_that_are_there(tmp_path_factory, rule, num_old, num_new, seed) -> None:
    folder = tmp_path_factory.mktemp("extend")
    vectors = nested_vectors(num_old + num_new, seed=seed)
    settings_ = (f"semantic_ids.collisions={rule}", "semantic_ids.tokenizer.sizes=[4,32]")
    loose = ("semantic_ids.health.min_code_usage=0", "semantic_ids.health.min_entropy=0")
    small = write_set(folder / "small", num_old, vectors[:num_old])
    made = tokenize(map_config(small, *settings_, *loose))
    large = map_config(write_set(folder / "large", num_old + num_new, vectors), *settings_, *loose)
    extended = extend(large)
    assert made is not None
    assert np.array_equal(extended.ids.codes[: num_old + 1], made.ids.codes)
    assert map_for(large, folder / "large").num_items == num_old + num_new  # which also checks that codes differ
    assert extended.num_new == num_new
    assert extended.grown is None and extended.ids.sizes == made.ids.sizes
    assert extend(large).num_new == 0


def test_what_does_not_fit_is_told(tmp_path) -> None:
    vectors = nested_vectors(40)
    config = map_config(write_set(tmp_path / "set", 30, vectors[:30]))
    with pytest.raises(DataError, match="holds no map of semantic ids"):
        extend(config)
    tokenize(config)
    larger = map_config(write_set(tmp_path / "larger", 40, vectors))
    with pytest.raises(DataError, match=r"30 items and .*larger has 10 more; run `genrec tokenize CONFIG --extend`"):
        map_for(larger, tmp_path / "larger")
    smaller = map_config(write_set(tmp_path / "smaller", 20, vectors[:20]))
    for refuse in (lambda: map_for(smaller, tmp_path / "smaller"), lambda: extend(smaller)):
        with pytest.raises(DataError, match="is of another catalogue than"):
            refuse()
    with pytest.raises(ConfigError, match=r"made with other settings of semantic_ids.tokenizer and semantic_ids.coll"):
        extend(map_config(tmp_path / "larger", "semantic_ids.collisions=nearest", "semantic_ids.tokenizer.sizes=[8]"))
    other = map_config(write_set(tmp_path / "other", 40, nested_vectors(40, dim=5)))
    with pytest.raises(DataError, match="the map was made in: dim was 8 and is 5"):
        extend(other)
    with pytest.raises(ConfigError, match="semantic_ids is null"):
        map_for(map_config(tmp_path / "set").model_copy(update={"semantic_ids": None}), tmp_path / "set")


def test_published_codes(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 3)  # ids 10, 20, 30
    codes = {"9": ["<a_1>", "<b_0>"], "19": ["<a_1>", "<b_0>"], "29": ["<a_0>", "<b_3>"], "99": ["<a_5>", "<b_1>"]}
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    loose = ("semantic_ids.health.min_code_usage=0", "semantic_ids.health.min_entropy=0")
    values = map_config(prepared, *loose).model_dump()
    values["semantic_ids"]["tokenizer"] = PUBLISHED | {"path": str(tmp_path / "codes.json"), "key_offset": -1}
    config = type(map_config(prepared)).model_validate(values)
    made = tokenize(config)
    assert made is not None
    assert made.ids.codes[1:].tolist() == [[1, 0, 0], [1, 0, 1], [0, 3, 0]]
    assert made.ids.sizes == (6, 4, 2)
    assert made.health.reconstruction is None
    write_set(tmp_path / "more", 4)
    larger = config.model_copy(update={"data": config.data.model_copy(update={"prepared": str(tmp_path / "more")})})
    with pytest.raises(DataError, match="has no codes for 1 of 4 items, '40' for one"):
        extend(larger)
    (tmp_path / "codes.json").write_text(json.dumps(codes | {"39": [1, 0]}))
    extended = extend(larger)
    assert extended.ids.codes[-1].tolist() == [1, 0, 2]
    assert extended.grown == (2, 2, 3) and "Level 2 grew from 2 to 3 codes" in extended.sentences()[1]
    write_set(tmp_path / "five", 5)
    (tmp_path / "codes.json").write_text(json.dumps(codes | {"39": [1, 0], "49": [7, 0]}))
    largest = config.model_copy(update={"data": config.data.model_copy(update={"prepared": str(tmp_path / "five")})})
    assert extend(largest).grown == (0, 6, 8)
    values["semantic_ids"]["collisions"] = "nearest"
    with pytest.raises(ConfigError, match="no nearest free code is known"):
        tokenize(type(config).model_validate(values), overwrite=True)


def test_a_killed_swap_is_put_right(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 60, nested_vectors(60))
    config = map_config(prepared)
    tokenize(config)
    (tmp_path / "map").rename(tmp_path / ".map.replaced")
    (tmp_path / ".map.tokenizing").mkdir()
    assert extend(config).num_new == 0
    assert load_semantic_ids(tmp_path / "map").num_items == 60


def test_a_damaged_file_is_told_even_where_there_is_nothing_to_add(tmp_path) -> None:
    config = map_config(write_set(tmp_path / "set", 60, nested_vectors(60)))
    tokenize(config)
    for name in ("tokenizer.safetensors", "vectors.json"):
        path = tmp_path / "map" / name
        whole = path.read_bytes()
        for damaged in (whole[:-1] + b"?", whole[:5], None):  # another byte, cut, gone
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"map has other content in {name} than was saved there"):
                extend(config)
            path.write_bytes(whole)
    assert extend(config).num_new == 0


@pytest.mark.slow
def test_two_processes_make_the_map_that_one_makes(tmp_path) -> None:
    prepared = write_set(tmp_path / "set", 200, nested_vectors(200))
    config = map_config(prepared)
    alone = tokenize(config)
    file = tmp_path / "c.yaml"
    values = config.model_dump(mode="json")
    values["semantic_ids"]["path"] = str(tmp_path / "other")
    file.write_text(yaml.safe_dump(values))
    script = (
        "import os; from genrec.config import load_config; from genrec.semantic.team import open_team;"
        "from genrec.semantic.tokenize import tokenize\n"
        f"with open_team(os.environ) as team: tokenize(load_config({str(file)!r}), team=team)"
    )
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script], env=os.environ | rendezvous | {"RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=250) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(timeout=10)
    assert alone is not None
    assert np.array_equal(load_semantic_ids(tmp_path / "other").codes, alone.ids.codes)


def _free_port() -> int:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    port: int = store.port
    del store
    return port
