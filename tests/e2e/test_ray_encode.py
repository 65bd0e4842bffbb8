"""`genrec tokenize` with a sentence encoder on Ray actors: the vectors of one process, and only what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import on_ray_with, succeed
from tiny_bert import WORDS, write_encoder, write_tokenizer


@pytest.fixture
def project(prepared_project: Path, tmp_path: Path) -> Path:
    """The small log with a text for each of its 100 items, an encoder, and the config of a map."""
    folder = tmp_path / "project"
    shutil.copytree(prepared_project, folder)
    write_tokenizer(write_encoder(folder / "encoder"))
    nouns = WORDS[4:]
    texts = {
        str(item): " ".join(nouns[(item + k * k) % len(nouns)] for k in range(2 + item % 4)) for item in range(100)
    }
    (folder / "texts.json").write_text(json.dumps(texts))
    vectors = "{name: text, encoder: encoder, path: texts.json, texts_per_shard: 16}"
    (folder / "map.yaml").write_text(
        (folder / "walk.yaml").read_text()
        + f"semantic_ids:\n  path: maps/one\n  vectors: {vectors}\n"
        + "  tokenizer: {name: rkmeans, sizes: [4, 4]}\n"
        + "  health: {max_collision_rate: null, min_code_usage: null, min_entropy: null}\n"
    )
    return folder


def shards_of(project: Path, name: str) -> dict[str, np.ndarray]:
    """The vectors of a map's texts by the names of their files, which are digests of texts and encoder."""
    return {path.name: np.load(path) for path in (project / f"maps/{name}.vectors").glob("*.npy")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_give_the_vectors_of_one_process_and_finish_what_is_missing(project: Path) -> None:
    succeed(project, "tokenize", "map.yaml")
    expected = shards_of(project, "one")
    assert len(expected) == 7  # 100 texts, 16 a shard
    on_ray = ["tokenize", "map.yaml", "semantic_ids.path=maps/two", "semantic_ids.vectors.workers=2"]
    succeed(project, *on_ray, program=on_ray_with(3))

    def check() -> None:
        found = shards_of(project, "two")
        assert found.keys() == expected.keys()
        for name, vectors in expected.items():
            np.testing.assert_allclose(found[name], vectors, atol=1e-6)
        assert np.array_equal(np.load(project / "maps/two/codes.npy"), np.load(project / "maps/one/codes.npy"))

    check()
    files = sorted((project / "maps/two.vectors").glob("*.npy"))
    kept = {path: path.stat().st_mtime_ns for path in files[2:]}
    for path in files[:2]:
        path.unlink()  # what a killed command had not written yet
    succeed(project, *on_ray, "--overwrite", program=on_ray_with(3))
    check()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
