"""Residual k-means: finds clusters inside of clusters, the same with any number of workers, revives dead codes."""

import numpy as np
import pytest
import torch
from semantic_sets import nested_vectors, rows_of
from together import together

from genrec.config import RKMeansTokenizer
from genrec.semantic.rkmeans import fit_rkmeans, plus_plus
from genrec.semantic.tokenizers import ItemTokenizer, load_tokenizer


def fitted(vectors: np.ndarray, **settings: object) -> ItemTokenizer:
    return fit_rkmeans(RKMeansTokenizer(name="rkmeans", **settings), rows_of(vectors), seed=3)


def test_two_levels_find_clusters_inside_of_clusters() -> None:
    vectors = nested_vectors(800)
    tokenizer = fitted(vectors, sizes=(4, 4))
    codes = tokenizer.encode(torch.from_numpy(vectors))
    error = (tokenizer.decode(codes) - torch.from_numpy(vectors)).square().sum()
    spread = torch.from_numpy(vectors - vectors.mean(axis=0)).square().sum()
    assert len(codes.unique(dim=0)) == 16
    assert error < 0.001 * spread


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_any_number_of_workers_gives_the_same_codes(balance: float) -> None:
    vectors = nested_vectors(301, seed=5)
    config = RKMeansTokenizer(name="rkmeans", sizes=(5, 3), balance=balance, rows_per_batch=64)
    alone = fit_rkmeans(config, rows_of(vectors), seed=1)
    both = together(lambda rank, add: fit_rkmeans(config, rows_of(vectors, rank, 2, add), seed=1), 2)
    for tokenizer in both:
        for mine, theirs in zip(alone.parameters(), tokenizer.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_no_code_stays_dead_while_there_are_rows_for_it() -> None:
    # Far more rows in one place than anywhere else: most of 16 codes have to be found among the few.
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(2_000, 4)) * 0.01, rng.normal(size=(60, 4)) * 5]).astype(np.float32)
    codes = fitted(vectors, sizes=(16,)).encode(torch.from_numpy(vectors))
    assert len(codes.unique()) == 16


def test_fewer_different_rows_than_codes_is_no_error() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    codes = fitted(vectors, sizes=(8, 8)).encode(torch.from_numpy(vectors))
    assert len(codes.unique(dim=0)) == 3


def test_balanced_codes_have_more_equal_shares() -> None:
    rng = np.random.default_rng(2)
    crowd = rng.normal(size=(1_500, 4)) * 0.3
    vectors = np.concatenate([crowd, rng.normal(size=(500, 4)) * 3]).astype(np.float32)
    fullest = {}
    for balance in (0.0, 1.0):
        tokenizer = fitted(vectors, sizes=(16,), balance=balance)
        fullest[balance] = int(torch.bincount(tokenizer.encode(torch.from_numpy(vectors))[:, 0]).max())
    assert fullest[1.0] * 4 < fullest[0.0]


def test_the_start_takes_rows_that_are_far_from_the_centres() -> None:
    sample = torch.tensor([[0.0], [0.0], [0.0], [9.0]])
    for seed in range(5):
        found = plus_plus(sample, sample[:1], 2, np.random.default_rng(seed))
        assert found.flatten().tolist() == [0.0, 9.0]


def test_a_tokenizer_comes_back_as_it_was_saved(tmp_path) -> None:
    vectors = nested_vectors(200)
    tokenizer = fitted(vectors, sizes=(4, 4), balance=0.5)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert torch.equal(again.encode(torch.from_numpy(vectors)), tokenizer.encode(torch.from_numpy(vectors)))
