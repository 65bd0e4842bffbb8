"""The benchmark of residual k-means runs, and its error is small where clusters are tight."""

import numpy as np
import pytest

import tokenizing


def test_genrec_alone(tmp_path) -> None:
    vectors = tokenizing.write_mixture(tmp_path / "v.npy", 2_000, 8, num_centres=8)
    row = tokenizing.run_genrec(vectors, (8, 8), iterations=5)
    assert 0 < row["relative_error"] < 0.35
    assert row["train_s"] > 0 and row["code_s"] > 0


def test_the_error_is_over_the_variance() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) + 7
    mean = vectors.mean(axis=0)
    assert tokenizing.relative_error(vectors, lambda rows: mean) == pytest.approx(1, abs=1e-3)
    assert tokenizing.relative_error(vectors, lambda rows: vectors[rows]) == 0


def test_faiss_must_be_there_or_left_out(monkeypatch, capsys) -> None:
    monkeypatch.setattr(tokenizing.importlib.util, "find_spec", lambda name: None)
    assert not tokenizing.parse(["--no-faiss"]).faiss
    with pytest.raises(SystemExit):
        tokenizing.parse([])
    assert "pip install faiss-cpu" in capsys.readouterr().err
