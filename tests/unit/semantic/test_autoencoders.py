"""RQ-VAE and FSQ: the formulas, written out; codes as they should be; the same with two workers."""

import numpy as np
import pytest
import torch
from semantic_sets import nested_vectors, rows_of
from together import together

from genrec.config import FSQTokenizer, RQVAETokenizer
from genrec.errors import RunError
from genrec.semantic.fsq import fit_fsq, grid_points
from genrec.semantic.rqvae import fit_rqvae, rqvae_loss, train_rqvae
from genrec.semantic.tokenizers import Bounded, ItemTokenizer, load_tokenizer

SMALL = {"hidden_dims": (16,), "optimizer": "adamw", "lr": 0.01, "rows_per_batch": 128}


def test_the_defaults_of_rqvae_are_those_of_the_paper() -> None:
    config = RQVAETokenizer(name="rqvae")
    assert (config.sizes, config.hidden_dims, config.latent_dim) == ((256, 256, 256), (512, 256, 128), 32)
    assert (config.beta, config.optimizer, config.lr) == (0.25, "adagrad", 0.4)
    assert (config.rows_per_batch, config.epochs, config.revive_every) == (1_024, 20_000, None)


def test_rqvae_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    tokenizer, vectors, beta = ItemTokenizer([6, 5, 3], [4, 4]), torch.randn(7, 6), 0.25
    latent = tokenizer.encoder(vectors)
    expected = torch.zeros(())
    for row in range(7):
        left, total = latent[row], torch.zeros(3)
        for book in tokenizer.books:
            code = min(range(4), key=lambda k, left=left, book=book: (left - book[k]).norm().item())
            expected = expected + (1 + beta) * (left - book[code]).square().sum()
            left, total = left - book[code], total + book[code]
        expected = expected + (vectors[row] - tokenizer.decoder(total)).square().sum()
    torch.testing.assert_close(rqvae_loss(tokenizer, vectors, beta), expected / 7)


def test_gradients_of_rqvae_go_where_they_should() -> None:
    torch.manual_seed(0)
    tokenizer, vectors = ItemTokenizer([6, 5, 3], [4, 4]), torch.randn(7, 6)
    books = list(tokenizer.books)
    with_commitment = torch.autograd.grad(rqvae_loss(tokenizer, vectors, 0.25), books)
    without = torch.autograd.grad(rqvae_loss(tokenizer, vectors, 0.0), books)
    for mine, theirs in zip(with_commitment, without, strict=True):
        torch.testing.assert_close(mine, theirs)  # commitment moves the encoder, not the codes
    # The decoder's gradient reaches the encoder through the quantisation.
    gradients = torch.autograd.grad(rqvae_loss(tokenizer, vectors, 0.0), list(tokenizer.encoder.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_rqvae_tells_clusters_apart() -> None:
    vectors = nested_vectors(512)
    config = RQVAETokenizer(name="rqvae", sizes=(8, 8), latent_dim=4, epochs=120, **SMALL)
    tokenizer = fit_rqvae(config, rows_of(vectors), seed=1)
    codes = tokenizer.encode(torch.from_numpy(vectors))
    error = (tokenizer.decode(codes) - torch.from_numpy(vectors)).square().sum()
    spread = torch.from_numpy(vectors - vectors.mean(axis=0)).square().sum()
    assert error < 0.2 * spread
    assert len(codes.unique(dim=0)) >= 12


def test_a_rqvae_that_diverges_is_told() -> None:
    vectors = nested_vectors(64) * 1e18
    config = RQVAETokenizer(name="rqvae", sizes=(4,), hidden_dims=(8,), latent_dim=2, lr=1e6, epochs=30)
    with pytest.raises(RunError, match=r"it diverges; lower semantic_ids.tokenizer.lr \(1000000.0\)"):
        fit_rqvae(config, rows_of(vectors), seed=1)


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
@pytest.mark.parametrize("revive_every", [None, 1])
def test_a_dead_code_comes_back(optimizer: str, revive_every: int | None) -> None:
    vectors = nested_vectors(512)
    started = RQVAETokenizer(name="rqvae", sizes=(6, 6), latent_dim=4, epochs=1, **SMALL)
    tokenizer = fit_rqvae(started, rows_of(vectors), seed=1).requires_grad_(True)
    with torch.no_grad():
        tokenizer.books[0][2] = tokenizer.books[1][4] = 1e6
    # Steps so small that a code which starts at a vector stays its nearest one.
    slow = {"optimizer": optimizer, "lr": 1e-5, "epochs": 2, "revive_every": revive_every}
    train_rqvae(tokenizer, started.model_copy(update=slow), rows_of(vectors), seed=1)
    codes = tokenizer.encode(torch.from_numpy(vectors))
    is_used = bool((codes[:, 0] == 2).any()), bool((codes[:, 1] == 4).any())
    assert is_used == ((False, False) if revive_every is None else (True, True))
    assert all(bool(book.isfinite().all()) for book in tokenizer.books)


def test_where_every_code_is_picked_a_revival_changes_nothing() -> None:
    vectors = nested_vectors(512)
    tokenizers = []
    for revive_every in (None, 1):
        more = {"latent_dim": 4, "epochs": 3, "revive_every": revive_every}
        tokenizers.append(fit_rqvae(RQVAETokenizer(name="rqvae", sizes=(2,), **more, **SMALL), rows_of(vectors), 1))
    assert len(tokenizers[0].encode(torch.from_numpy(vectors)).unique()) == 2
    for mine, theirs in zip(*(tokenizer.parameters() for tokenizer in tokenizers), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["rqvae", "fsq"])
def test_two_workers_stay_equal(kind: str) -> None:
    vectors = nested_vectors(256)

    def fit(rank: int, add: object) -> ItemTokenizer:
        rows = rows_of(vectors, rank, 2, add)
        if kind == "rqvae":
            more = {"latent_dim": 2, "epochs": 4, "revive_every": 1}  # of 64 codes in two dimensions many die
            return fit_rqvae(RQVAETokenizer(name="rqvae", sizes=(64, 64), **more, **SMALL), rows, seed=1)
        return fit_fsq(FSQTokenizer(name="fsq", grid=((4,), (3,)), epochs=3, **SMALL), rows, seed=1)

    first, second = together(fit, 2)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_bound_reaches_every_step_of_the_grid_and_no_other() -> None:
    far = torch.linspace(-50, 50, 2_001)[:, None].expand(-1, 3)
    reached = Bounded((8, 5, 2))(far).round()
    for place, steps in enumerate((8, 5, 2)):
        assert reached[:, place].unique().tolist() == list(range(-(steps // 2), steps - steps // 2))


def test_codes_of_fsq_are_the_rounded_dimensions(tmp_path) -> None:
    vectors = nested_vectors(256)
    config = FSQTokenizer(name="fsq", grid=((4, 3), (5,)), epochs=30, **SMALL)
    tokenizer = fit_fsq(config, rows_of(vectors), seed=1)
    assert tokenizer.sizes == (12, 5)
    codes = tokenizer.encode(torch.from_numpy(vectors))
    rounded = tokenizer.embed(torch.from_numpy(vectors)).round()
    picked = sum(book[codes[:, level]] for level, book in enumerate(grid_points(config.grid)))
    assert torch.equal(picked, rounded)
    tokenizer.save(tmp_path)
    assert torch.equal(load_tokenizer(tmp_path).encode(torch.from_numpy(vectors)), codes)


def test_fsq_reconstructs() -> None:
    vectors = nested_vectors(512)
    tokenizer = fit_fsq(FSQTokenizer(name="fsq", grid=((8, 5), (8, 5)), epochs=150, **SMALL), rows_of(vectors), seed=1)
    codes = tokenizer.encode(torch.from_numpy(vectors))
    error = (tokenizer.decode(codes) - torch.from_numpy(vectors)).square().sum()
    spread = torch.from_numpy(vectors - vectors.mean(axis=0)).square().sum()
    assert error < 0.2 * spread
    assert np.unique(codes.numpy(), axis=0).shape[0] >= 8
